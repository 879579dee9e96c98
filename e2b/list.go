package e2b

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

const (
	pageSize = 100     // the most that E2B gives
	maxPages = 10_000  // of a list; no account has so many sandboxes
	maxToken = 4 << 10 // bytes of that for a page; E2B's have some 80
)

// ListOptions says which sandboxes are listed. The zero value means all, the
// newest first.
type ListOptions struct {
	Metadata     map[string]string // only those that have all of these
	States       []State           // only those in one of these; none means all
	Template     string            // only those made from it: a name without a tag, or an ID
	StartedAfter time.Time         // only those started then or later; zero means all
	OldestFirst  bool
}

func (o *ListOptions) query() url.Values {
	q := url.Values{}
	if len(o.Metadata) > 0 {
		q.Set("metadata", metadataFilter(o.Metadata))
	}
	if len(o.States) > 0 {
		states := make([]string, len(o.States))
		for i, s := range o.States {
			states[i] = string(s)
		}
		q.Set("state", strings.Join(states, ","))
	}
	if o.Template != "" {
		q.Set("template", o.Template)
	}
	if !o.StartedAfter.IsZero() {
		q.Set("startedAfter", o.StartedAfter.UTC().Format(time.RFC3339Nano))
	}
	if o.OldestFirst {
		q.Set("order", "asc")
	}
	return q
}

// metadataFilter is the value of the query parameter before its own encoding.
// The server decodes the whole once more, and then every key and value, so
// these are encoded twice.
func metadataFilter(m map[string]string) string {
	var pairs []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		pairs = append(pairs, percent(percent(k))+"="+percent(percent(m[k])))
	}
	return strings.Join(pairs, "&")
}

// percent encodes all that is special in a URL, and a space not as a plus,
// which not every decoder takes for one.
func percent(s string) string {
	return strings.ReplaceAll(url.QueryEscape(s), "+", "%20")
}

// List lists the account's sandboxes, running and paused. It asks for more
// pages as it goes, each within Config.RequestTimeout. What is made or ends
// meanwhile may be left out. An error ends the list.
func (c *Client) List(ctx context.Context, o ListOptions) iter.Seq2[SandboxInfo, error] {
	return pages(ctx, c, "list sandboxes", "/v2/sandboxes", o.query(), (*SandboxInfo).seen)
}

// pages iterates over a list that comes in pages. The server's token for the
// next page is not trusted to change, nor ever to end.
// Each item is told the server's time, unless seen is nil.
func pages[T any](ctx context.Context, c *Client, op, path string, query url.Values, seen func(*T, http.Header)) iter.Seq2[T, error] {
	return pagesIn(ctx, c, op, path, query, func(list *bounded[T]) any { return list }, seen)
}

// pagesIn is pages where the list is in something: in makes that around it, to
// be filled from JSON.
func pagesIn[T any](ctx context.Context, c *Client, op, path string, query url.Values, in func(*bounded[T]) any, seen func(*T, http.Header)) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var zero T
		query := maps.Clone(query) // the sequence may be used again
		query.Set("limit", fmt.Sprint(pageSize))
		tokens := make(map[[sha256.Size]byte]bool)
		for range maxPages {
			page, header, err := onePage(ctx, c, op, path, query, in)
			if err != nil {
				yield(zero, err)
				return
			}
			for _, item := range page {
				if seen != nil {
					seen(&item, header)
				}
				if !yield(item, nil) {
					return
				}
			}
			next := header.Get("X-Next-Token")
			if next == "" {
				return
			}
			token := sha256.Sum256([]byte(next))
			if tokens[token] || len(next) > maxToken {
				break
			}
			tokens[token] = true
			query.Set("nextToken", next)
		}
		yield(zero, fmt.Errorf("%s: %w", op, errEndless))
	}
}

var errEndless = errors.New("the server's list has no end")

func onePage[T any](ctx context.Context, c *Client, op, path string, query url.Values, in func(*bounded[T]) any) (items []T, header http.Header, err error) {
	page := bounded[T]{most: pageSize}
	resp, err := c.send(ctx, apiCall{op: op, method: http.MethodGet, path: path, query: query, out: in(&page), safe: true})
	if err != nil {
		return nil, nil, err
	}
	return page.items, resp.Header, nil
}
