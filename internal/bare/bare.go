// Package bare is the peer of the benchmarks: the least code that talks to
// E2B's daemon, with no retries, no checks and no care for what is lost. What
// it reaches is what the wire and the daemon allow.
package bare

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/osiris-pipelines/remote/internal/envdpb"
)

// Client talks to the daemon of one sandbox.
type Client struct {
	url    string
	header http.Header
	http   *http.Client
	start  *connect.Client[envdpb.StartRequest, envdpb.StartResponse]
	send   *connect.Client[envdpb.SendInputRequest, envdpb.SendInputResponse]
}

// Create makes a sandbox without a token, at a control plane and a URL of
// sandboxes.
func Create(ctx context.Context, key, apiURL, sandboxURL string) (*Client, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, apiURL+"/sandboxes", strings.NewReader(`{"templateID":"base","timeout":3600,"secure":false}`))
	if err != nil {
		return nil, err
	}
	req.Header.Set("X-API-Key", key)
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var answer struct{ SandboxID string }
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil || resp.StatusCode != http.StatusCreated {
		return nil, fmt.Errorf("create: %s, %v", resp.Status, err)
	}
	transport := &http.Transport{
		DisableCompression: true, MaxIdleConnsPerHost: 16, WriteBufferSize: 64 << 10, ReadBufferSize: 64 << 10,
	}
	c := &Client{url: sandboxURL, header: http.Header{}, http: &http.Client{Transport: transport}}
	c.header.Set("E2b-Sandbox-Id", answer.SandboxID)
	c.header.Set("E2b-Sandbox-Port", "49983")
	plain := connect.WithAcceptCompression("gzip", nil, nil)
	c.start = connect.NewClient[envdpb.StartRequest, envdpb.StartResponse](c.http, sandboxURL+envdpb.ProcessStart, plain)
	c.send = connect.NewClient[envdpb.SendInputRequest, envdpb.SendInputResponse](c.http, sandboxURL+envdpb.ProcessSendInput, plain)
	return c, nil
}

// Close closes its connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

func (c *Client) authorize(h http.Header) {
	for k, v := range c.header {
		h[k] = v
	}
}

// Process is a process that was started.
type Process struct {
	PID    uint32
	client *Client
	stream *connect.ServerStreamForClient[envdpb.StartResponse]
}

// Start starts a process.
func (c *Client) Start(ctx context.Context, path string, args ...string) (*Process, error) {
	req := connect.NewRequest(&envdpb.StartRequest{Process: &envdpb.ProcessConfig{Cmd: path, Args: args}})
	c.authorize(req.Header())
	stream, err := c.start.CallServerStream(ctx, req)
	if err != nil {
		return nil, err
	}
	if !stream.Receive() {
		return nil, stream.Err()
	}
	return &Process{PID: stream.Msg().GetEvent().GetStart().GetPid(), client: c, stream: stream}, nil
}

// Next returns the next piece of standard output, and io.EOF at its end.
func (p *Process) Next() ([]byte, error) {
	for p.stream.Receive() {
		event := p.stream.Msg().GetEvent()
		if event.GetEnd() != nil {
			return nil, io.EOF
		}
		if b := event.GetData().GetStdout(); len(b) > 0 {
			return b, nil
		}
	}
	return nil, p.stream.Err()
}

// Send writes to standard input, in a call of its own.
func (p *Process) Send(ctx context.Context, b []byte) error {
	req := connect.NewRequest(&envdpb.SendInputRequest{
		Process: &envdpb.ProcessSelector{Selector: &envdpb.ProcessSelector_Pid{Pid: p.PID}},
		Input:   &envdpb.ProcessInput{Input: &envdpb.ProcessInput_Stdin{Stdin: b}},
	})
	p.client.authorize(req.Header())
	_, err := p.client.send.CallUnary(ctx, req)
	return err
}

// Close lets go of the process.
func (p *Process) Close() error { return p.stream.Close() }

func (c *Client) file(ctx context.Context, method, path string, body io.Reader, size int64) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.url+"/files?path="+url.QueryEscape(path), body)
	if err != nil {
		return nil, err
	}
	c.authorize(req.Header)
	req.Header.Set("Accept-Encoding", "identity")
	req.Header.Set("Content-Type", "application/octet-stream")
	req.ContentLength = size
	resp, err := c.http.Do(req)
	if err == nil && resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		err = fmt.Errorf("%s %s: %s", method, path, resp.Status)
	}
	return resp, err
}

// Upload writes a file.
func (c *Client) Upload(ctx context.Context, path string, r io.Reader, size int64) error {
	resp, err := c.file(ctx, http.MethodPost, path, r, size)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

// Download reads a file into w and checks its size.
func (c *Client) Download(ctx context.Context, path string, w io.Writer) error {
	resp, err := c.file(ctx, http.MethodGet, path, nil, 0)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	n, err := io.Copy(w, resp.Body)
	if err == nil && n != resp.ContentLength {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// ControlPlane is the least control plane for a daemon that runs by itself: all
// sandboxes are that one.
func ControlPlane() *httptest.Server {
	sandbox := func(w http.ResponseWriter, status int) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		now := time.Now()
		var b bytes.Buffer
		_ = json.NewEncoder(&b).Encode(map[string]any{
			"sandboxID": "ibare", "templateID": "base", "clientID": "6532622b", "envdVersion": "0.6.13", "state": "running",
			"cpuCount": 2, "memoryMB": 512, "diskSizeMB": 1024,
			"startedAt": now, "endAt": now.Add(24 * time.Hour),
		})
		_, _ = w.Write(b.Bytes())
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /sandboxes", func(w http.ResponseWriter, _ *http.Request) { sandbox(w, http.StatusCreated) })
	mux.HandleFunc("GET /sandboxes/{id}", func(w http.ResponseWriter, _ *http.Request) { sandbox(w, http.StatusOK) })
	done := func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }
	mux.HandleFunc("POST /sandboxes/{id}/timeout", done)
	mux.HandleFunc("DELETE /sandboxes/{id}", done)
	return httptest.NewServer(mux)
}
