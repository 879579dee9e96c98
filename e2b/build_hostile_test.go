package e2b

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"unicode"
)

// TestWaitBuildEnds has servers that never come to an end, and callers that do.
func TestWaitBuildEnds(t *testing.T) {
	page := strings.TrimSuffix(strings.Repeat(`{"timestamp":"2026-01-02T03:04:05Z","message":"m","level":"info"},`, pageSize), ",")
	for name, body := range map[string]string{
		"no end":      `{"status":"building","logEntries":[]}`,
		"never":       `{"status":"waiting","logEntries":[]}`,
		"endless log": `{"status":"building","logEntries":[` + page + `]}`,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				enough := errors.New("enough")
				ctx, cancel := context.WithCancelCause(t.Context())
				looks, lines := 0, 0
				c := newTestClient(t, serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
					if looks++; looks == 20 {
						cancel(enough)
					}
					io.WriteString(w, body)
				})))
				err := c.WaitBuild(ctx, "t1", "b1", func(BuildLog) { lines++ })
				if !errors.Is(err, enough) || looks != 20 {
					t.Errorf("%d looks, %v", looks, err)
				}
				if name == "endless log" && lines < 19*pageSize {
					t.Errorf("%d lines", lines)
				}
			})
		})
	}
}

// The log of a build that has ended may go on, but not for ever.
func TestLogAfterTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestClient(t, serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, `{"status":"error","reason":{"message":"m"},"logEntries":[{"timestamp":"2026-01-02T03:04:05Z","message":"x"}]}`)
		})))
		lines := 0
		err := c.WaitBuild(t.Context(), "t1", "b1", func(BuildLog) { lines++ })
		if e := (*BuildError)(nil); !errors.As(err, &e) || lines != lastPages || len(e.Log) != maxErrorLog {
			t.Errorf("%d lines, %v", lines, err)
		}
	})
}

// A build says what it likes: its log is told as it is, and its error is a
// bounded line of text.
func TestBuildErrorQuotesSafely(t *testing.T) {
	words := `\u001b[2J\u0000bad\nline\u202e ` + strings.Repeat("A", 100_000)
	entry := fmt.Sprintf(`{"timestamp":"2026-01-02T03:04:05Z","message":"%s","step":"1\u001b"}`, words)
	body := fmt.Sprintf(`{"status":"error","logEntries":[%s],"reason":{"message":"%s","step":"1\u001b"}}`, strings.Join(slices.Repeat([]string{entry}, 30), ","), words)
	synctest.Test(t, func(t *testing.T) {
		answers := []string{body, `{"status":"error","logEntries":[]}`}
		c := newTestClient(t, serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, answers[0])
			answers = answers[min(1, len(answers)-1):]
		})))
		var told int
		err := c.WaitBuild(t.Context(), "t1", "b1", func(l BuildLog) { told += len(l.Message) })
		var e *BuildError
		if !errors.As(err, &e) || told < 30*100_000 {
			t.Fatalf("%d bytes were told, error %v", told, err)
		}
		kept := 0
		for _, l := range e.Log {
			kept += len(l.Message)
		}
		if text := err.Error(); len(text) > 5000 || !isOneLine(text) || !strings.Contains(text, "bad line") {
			t.Errorf("%d bytes: %q", len(text), text)
		}
		if len(e.Log) != 30 || kept > 30*(maxKeptBytes+3) {
			t.Errorf("%d lines with %d bytes are kept", len(e.Log), kept)
		}
	})
}

func isOneLine(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

// TestWrongBuildAnswers has servers that do not say what E2B says. That is not
// taken for a fault that passes.
func TestWrongBuildAnswers(t *testing.T) {
	for name, body := range map[string]string{
		"no JSON":        `<html>`,
		"cut":            `{"status":"ready"`,
		"nothing":        ``,
		"null":           `null`,
		"list":           `[]`,
		"no status":      `{"logEntries":[]}`,
		"number":         `{"status":3}`,
		"log":            `{"status":"ready","logEntries":{}}`,
		"entry":          `{"status":"ready","logEntries":["x"]}`,
		"time":           `{"status":"ready","logEntries":[{"timestamp":"yesterday"}]}`,
		"reason":         `{"status":"error","reason":"x"}`,
		"many":           `{"status":"ready","logEntries":[{}` + strings.Repeat(`,{}`, maxLogEntries) + `]}`,
		"many in reason": `{"status":"error","reason":{"logEntries":[{}` + strings.Repeat(`,{}`, maxLogEntries) + `]}}`,
		"long":           `{"status":"ready","logEntries":[{"message":"` + strings.Repeat("x", maxAnswerBytes) + `"}]}`,
	} {
		synctest.Test(t, func(t *testing.T) {
			looks := 0
			c := newTestClient(t, serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				looks++
				io.WriteString(w, body)
			})))
			err := c.WaitBuild(t.Context(), "t1", "b1", nil)
			if err == nil || errors.Is(err, ErrBuild) || looks != 1 || len(err.Error()) > 2*maxMessageBytes {
				t.Errorf("%s: %d looks, %.200v", name, looks, err)
			}
		})
	}
}

// TestHostileBuildIDs has IDs that would be other paths.
func TestHostileBuildIDs(t *testing.T) {
	c := newTestClient(t, roundTripFunc(func(r *http.Request) (*http.Response, error) {
		t.Errorf("%s was asked for", r.URL)
		return nil, io.EOF
	}))
	for _, id := range []string{"", "..", "a/b", "a?b", "a%2f", "a b", "é", strings.Repeat("a", 200)} {
		if err := c.WaitBuild(t.Context(), id, "b1", nil); !errors.Is(err, ErrInvalid) {
			t.Errorf("template %q: %v", id, err)
		}
		if err := c.WaitBuild(t.Context(), "t1", id, nil); !errors.Is(err, ErrInvalid) {
			t.Errorf("build %q: %v", id, err)
		}
	}
}

func FuzzBuildStatus(f *testing.F) {
	for _, body := range []string{
		`{"status":"waiting","logEntries":[],"logs":[],"templateID":"t1","buildID":"b1"}`,
		`{"status":"building","logEntries":[{"timestamp":"2026-01-02T03:04:05.678Z","message":"[builder 1/2] [stdout]: x","level":"info","step":"1"}]}`,
		`{"status":"error","logEntries":[{"timestamp":"2026-01-02T03:04:05Z","message":"\u001bx","level":"warn","step":"2"}],"reason":{"message":"failed","step":"2","logEntries":[{"message":"y"}]}}`,
		`{"status":"ready","reason":null}`,
		`{"status":"error","reason":{"message":"m","logEntries":[{},{}]}}`,
	} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		c := newTestClient(t, roundTripFunc(func(r *http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(body)), Request: r}, nil
		}))
		a, err := c.buildStatus(t.Context(), "look", "t1", "b1", 0)
		if err != nil {
			return
		}
		w := &buildWait{}
		w.take(a.Log.items)
		failed := a.failure("t1", "b1", w.last)
		if text := failed.Error(); len(text) > 8000 || !isOneLine(text) || !errors.Is(failed, ErrBuild) || a.Status == "" {
			t.Errorf("%d bytes: %q", len(text), text)
		}
	})
}
