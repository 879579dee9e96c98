package bare

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
)

// DownloadRanges reads a file of a size into w by as many requests for parts of it
// at a time as there are streams.
func (c *Client) DownloadRanges(ctx context.Context, path string, size, part int64, streams int, w io.WriterAt) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	offsets := make(chan int64)
	var workers sync.WaitGroup
	for range streams {
		workers.Go(func() {
			buf := make([]byte, 256<<10)
			for at := range offsets {
				if err := c.downloadRange(ctx, path, at, min(part, size-at), buf, w); err != nil {
					cancel(err)
				}
			}
		})
	}
	for at := int64(0); at < size && ctx.Err() == nil; at += part {
		offsets <- at
	}
	close(offsets)
	workers.Wait()
	return context.Cause(ctx)
}

func (c *Client) downloadRange(ctx context.Context, path string, at, n int64, buf []byte, w io.WriterAt) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url+"/files?path="+url.QueryEscape(path), nil)
	if err != nil {
		return err
	}
	c.authorize(req.Header)
	req.Header.Set("Accept-Encoding", "identity")
	req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", at, at+n-1))
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusPartialContent {
		return fmt.Errorf("GET %s: %s", path, resp.Status)
	}
	got, err := io.CopyBuffer(struct{ io.Writer }{io.NewOffsetWriter(w, at)}, struct{ io.Reader }{resp.Body}, buf)
	if err == nil && got != n {
		err = io.ErrUnexpectedEOF
	}
	return err
}
