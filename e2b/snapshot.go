package e2b

import (
	"context"
	"fmt"
	"iter"
	"net/http"
	"net/url"
)

// Snapshot is a template made from a sandbox, with its files and memory. It
// costs storage until it is deleted.
type Snapshot struct {
	ID    string   `json:"snapshotID"` // what CreateOptions.Template takes
	Names []string `json:"names"`      // with the account's namespace and a tag
}

// CreateSnapshot makes a snapshot of a running sandbox, which stands still for
// a moment and then goes on. The name, "name" or "name:tag", may be empty.
//
// The error matches [ErrSandboxGone] when there is no such sandbox,
// [ErrInvalid] when its daemon is older than 0.5.0, [ErrConflict] while it is
// changing its state. After one that matches [ErrTimeout], and after a cut
// connection, there may be a snapshot all the same: [Client.Snapshots] tells.
func (c *Client) CreateSnapshot(ctx context.Context, id, name string) (*Snapshot, error) {
	in := struct {
		Name string `json:"name,omitempty"`
	}{name}
	var s Snapshot
	call := apiCall{op: "create snapshot", method: http.MethodPost, in: in, out: &s}
	if _, err := c.sandboxCall(ctx, id, "/snapshots", call); err != nil {
		return nil, err
	}
	if s.ID == "" {
		return nil, fmt.Errorf("%s: the answer has no ID", call.op)
	}
	return &s, nil
}

// SnapshotOptions says which snapshots are listed. The zero value means all.
type SnapshotOptions struct {
	SandboxID string // only those made from this sandbox
	Name      string // only those with this name or ID, with or without a tag
}

// Snapshots lists the account's snapshots, as [Client.List] does sandboxes.
func (c *Client) Snapshots(ctx context.Context, o SnapshotOptions) iter.Seq2[Snapshot, error] {
	q := url.Values{}
	if o.SandboxID != "" {
		q.Set("sandboxID", o.SandboxID)
	}
	if o.Name != "" {
		q.Set("name", o.Name)
	}
	return pages[Snapshot](ctx, c, "list snapshots", "/snapshots", q, nil)
}

// DeleteSnapshot deletes a snapshot by its ID. It is no error when there is
// none. E2B refuses, and the error matches [ErrInvalid], while there are
// sandboxes that were made from it.
func (c *Client) DeleteSnapshot(ctx context.Context, id string) error {
	const op = "delete snapshot"
	if id == "" {
		return fmt.Errorf("%s: %w: there is no ID", op, ErrInvalid)
	}
	_, err := c.send(ctx, apiCall{
		op:     op,
		method: http.MethodDelete,
		path:   "/templates/" + segment(id),
		safe:   true,
		ok:     []int{http.StatusNotFound},
	})
	return err
}

// segment encodes a name that may have a slash or a colon as one segment of a
// path. Dots are encoded where they would mean a directory.
func segment(name string) string {
	switch name {
	case ".":
		return "%2E"
	case "..":
		return "%2E%2E"
	}
	return percent(name)
}
