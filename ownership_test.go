package remote_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"testing"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/mock"
	"github.com/osiris-pipelines/remote/rpc"
	"github.com/osiris-pipelines/remote/worker"
)

// A run that nobody can attach to has no other host, whatever its worker says:
// its sandbox is not left to one.
func TestNoOtherHost(t *testing.T) {
	t.Parallel()
	params, err := json.Marshal(rpc.Handshake{MinVersion: rpc.Version, MaxVersion: rpc.Version, SessionID: "s", Epoch: 9, Owner: "nobody"})
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(rpc.Request{ID: rpc.RequestID(rpc.FirstRequest(9)), Method: rpc.MethodHandshake, Params: params, Epoch: 9})
	if err != nil {
		t.Fatal(err)
	}
	forged, err := rpc.EncodeInput(rpc.FrameRequest, b)
	if err != nil {
		t.Fatal(err)
	}
	drivers := testDrivers()
	a, provider := newAdapter(t, "proxy", remote.Config{Drivers: drivers}, &mock.Options{Programs: map[string]mock.Program{
		"osiris-worker": func(ctx context.Context, p *mock.Proc) int {
			w, stdin := worker.Program{Drivers: drivers, FS: p.FS}, p.Stdin
			if p.Args[1] != "tail" {
				stdin = io.MultiReader(bytes.NewReader(forged), p.Stdin)
			}
			return w.Run(ctx, p.Args, stdin, p.Stdout, p.Stderr)
		},
	}})
	ec := newContext(t, "s")
	result, _, err := remote.Run(t.Context(), a, flood(1), ec)
	if err == nil || errors.Is(err, remote.ErrOwnershipLost) {
		t.Errorf("run: %v", err)
	}
	agree(t, ec, result, err)
	if alive := provider.Alive(); len(alive) > 0 {
		t.Errorf("%d sandboxes are left", len(alive))
	}
}
