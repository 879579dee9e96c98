package e2b

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// Metrics is what a sandbox used at one time.
type Metrics struct {
	Time      time.Time
	CPU       int     // cores it has
	CPUUsed   float64 // percent, 100 for all cores
	MemUsed   int64   // bytes, as all below
	MemTotal  int64
	MemCache  int64
	DiskUsed  int64
	DiskTotal int64
}

// UnmarshalJSON reads E2B's form.
func (m *Metrics) UnmarshalJSON(data []byte) error {
	var v struct {
		Timestamp time.Time `json:"timestamp"`
		Unix      int64     `json:"timestampUnix"`
		CPUCount  int       `json:"cpuCount"`
		CPUUsed   float64   `json:"cpuUsedPct"`
		MemUsed   int64     `json:"memUsed"`
		MemTotal  int64     `json:"memTotal"`
		MemCache  int64     `json:"memCache"`
		DiskUsed  int64     `json:"diskUsed"`
		DiskTotal int64     `json:"diskTotal"`
	}
	if err := json.Unmarshal(data, &v); err != nil {
		return err
	}
	*m = Metrics{v.Timestamp, v.CPUCount, v.CPUUsed, v.MemUsed, v.MemTotal, v.MemCache, v.DiskUsed, v.DiskTotal}
	if v.Unix != 0 {
		m.Time = time.Unix(v.Unix, 0)
	}
	return nil
}

// Metrics returns what a sandbox used from start to end, which may be zero for
// E2B's own choice; fractions of a second do not count. There are none, and no
// error, for a sandbox that E2B does not know.
func (c *Client) Metrics(ctx context.Context, id string, start, end time.Time) ([]Metrics, error) {
	const op = "get metrics"
	if !start.IsZero() && !end.IsZero() && start.After(end) {
		return nil, fmt.Errorf("%s: %w: the start is after the end", op, ErrInvalid)
	}
	q := url.Values{}
	if !start.IsZero() {
		q.Set("start", strconv.FormatInt(start.Unix(), 10))
	}
	if !end.IsZero() {
		q.Set("end", strconv.FormatInt(end.Unix(), 10))
	}
	metrics := bounded[Metrics]{most: maxMetrics}
	_, err := c.sandboxCall(ctx, id, "/metrics", apiCall{op: op, method: http.MethodGet, query: q, out: &metrics, safe: true})
	return metrics.items, err
}

// LogEntry is a line of a sandbox's log: that of E2B's own parts in it, not
// what its processes print.
type LogEntry struct {
	Time    time.Time         `json:"timestamp"`
	Level   string            `json:"level"` // debug, info, warn, error
	Message string            `json:"message"`
	Fields  map[string]string `json:"fields"`
}

// LogOptions says which entries are returned. The zero value means the oldest
// thousand. E2B keeps them for seven days.
type LogOptions struct {
	From        time.Time // where to begin, to the millisecond; zero means at the first, or the last
	NewestFirst bool      // go from there into the past
	Limit       int       // how many, at most 1000; zero means 1000
	Level       string    // only of this level or above; empty means all
	Search      string    // only those with this text, at most 256 bytes
}

const (
	maxLogs    = 1000    // the server's limit
	maxMetrics = 100_000 // a day of one each second; the server gives fewer
)

// Logs returns one page of a sandbox's log. The time of its last entry is
// where the next begins.
func (c *Client) Logs(ctx context.Context, id string, o LogOptions) ([]LogEntry, error) {
	const op = "get logs"
	if o.Limit < 0 || o.Limit > maxLogs || len(o.Search) > 256 {
		return nil, fmt.Errorf("%s: %w: the limit is 0 to %d entries, and a search has at most 256 bytes", op, ErrInvalid, maxLogs)
	}
	var page struct {
		Logs bounded[LogEntry] `json:"logs"`
	}
	page.Logs.most = maxLogs
	call := apiCall{op: op, method: http.MethodGet, query: o.query(), out: &page, safe: true}
	path, err := sandboxPath(id, "/logs")
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	call.path = "/v2" + path
	_, err = c.send(ctx, call)
	return page.Logs.items, aboutSandbox(err)
}

func (o *LogOptions) query() url.Values {
	q := url.Values{"direction": {"forward"}} // the server's default is backward
	if o.NewestFirst {
		q.Set("direction", "backward")
	}
	if !o.From.IsZero() {
		q.Set("cursor", strconv.FormatInt(o.From.UnixMilli(), 10))
	}
	if o.Limit > 0 {
		q.Set("limit", strconv.Itoa(o.Limit))
	}
	if o.Level != "" {
		q.Set("level", o.Level)
	}
	if o.Search != "" {
		q.Set("search", o.Search)
	}
	return q
}
