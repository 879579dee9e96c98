package e2b

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"
)

// maxUsageBytes bounds what the daemon says of its machine; it is some 200.
const maxUsageBytes = 64 << 10

// Health reports whether the sandbox's daemon answers. Nil means that it does;
// an error matches [ErrSandboxGone] where there is no such sandbox any more, or
// it is paused, and [ErrPortClosed] where it runs and its daemon does not.
//
// Asking wakes a sandbox that was paused and resumes on traffic:
// [Sandbox.Info] looks without touching.
func (s *Sandbox) Health(ctx context.Context) error {
	_, err := s.ask(ctx, "ask for health", "/health")
	return err
}

// Usage measures the sandbox now, by its daemon: [Sandbox.Metrics] has what
// E2B has kept.
func (s *Sandbox) Usage(ctx context.Context) (Metrics, error) {
	const op = "get usage"
	body, err := s.ask(ctx, op, "/metrics")
	if err != nil {
		return Metrics{}, err
	}
	var v struct {
		TS        int64   `json:"ts"`
		CPUCount  int     `json:"cpu_count"`
		CPUUsed   float64 `json:"cpu_used_pct"`
		MemUsed   int64   `json:"mem_used"`
		MemTotal  int64   `json:"mem_total"`
		MemCache  int64   `json:"mem_cache"`
		DiskUsed  int64   `json:"disk_used"`
		DiskTotal int64   `json:"disk_total"`
	}
	if err := json.Unmarshal(body, &v); err != nil {
		return Metrics{}, fmt.Errorf("%s: the answer is not what E2B's daemon says: %w", op, err)
	}
	return Metrics{time.Unix(v.TS, 0), v.CPUCount, v.CPUUsed, v.MemUsed, v.MemTotal, v.MemCache, v.DiskUsed, v.DiskTotal}, nil
}

// ask gets a small answer of the daemon's own.
func (s *Sandbox) ask(ctx context.Context, op, path string) ([]byte, error) {
	if err := s.placed(); err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	ctx, cancel := s.client.limit(ctx)
	defer cancel()
	req := &request{
		op: op, method: http.MethodGet, url: s.base + path, header: http.Header{},
		inside: true, safe: true, whole: maxUsageBytes,
	}
	s.authorize(req.header)
	resp, err := s.client.do(ctx, s.client.files, req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	return io.ReadAll(resp.Body)
}

// Host returns the name of the host under which a port of the sandbox is
// reached over https, as "3000-i0123456789.e2b.app". The error matches
// [ErrInvalid] where no domain is known, as on a deployment that is only named
// by Config.SandboxURL.
func (s *Sandbox) Host(port int) (string, error) {
	domain := s.domain()
	if port < 1 || port > 65535 || domain == "" {
		return "", fmt.Errorf("host of port %d: %w: want a port of 1 to 65535, and the deployment's domain in Config.Domain or E2B_DOMAIN", port, ErrInvalid)
	}
	return strconv.Itoa(port) + "-" + s.ID() + "." + domain, nil
}
