package mock_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/osiris-pipelines/remote/mock"
)

// Creates beyond the rate are refused, with the time to wait.
func TestServerCreateRate(t *testing.T) {
	c := newClock()
	server, err := mock.NewServer(mock.WithClock(c.Now), mock.WithCreateRate(0.5, 2))
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	create := func() *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL()+"/sandboxes", strings.NewReader(`{"templateID":"base","timeout":3600}`))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-API-Key", server.APIKey())
		req.Header.Set("Content-Type", "application/json")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp
	}
	for i, test := range []struct {
		wait   time.Duration // before
		status int
		after  string
	}{
		{0, http.StatusCreated, ""},
		{0, http.StatusCreated, ""},
		{0, http.StatusTooManyRequests, "2"},
		{time.Second, http.StatusTooManyRequests, "1"},
		{time.Second, http.StatusCreated, ""},
		{time.Hour, http.StatusCreated, ""},
		{0, http.StatusCreated, ""},
		{0, http.StatusTooManyRequests, "2"},
	} {
		c.advance(test.wait)
		resp := create()
		if after := resp.Header.Get("Retry-After"); resp.StatusCode != test.status || after != test.after {
			t.Errorf("create %d: %d, to come again after %q; want %d, %q", i, resp.StatusCode, after, test.status, test.after)
		}
		if date, err := http.ParseTime(resp.Header.Get("Date")); err != nil || !date.Equal(c.Now().Truncate(time.Second)) {
			t.Errorf("create %d: the server says that it is %s: %v", i, date, err)
		}
	}
	http.DefaultClient.CloseIdleConnections()
}
