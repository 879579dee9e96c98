//go:build unix

package remote_test

import (
	"testing"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/mock"
	"github.com/osiris-pipelines/remote/mock/mocktest"
)

// TestE2BSandbox runs the suite that every sandbox must pass over E2B's
// protocol, as the proxy uses it.
func TestE2BSandbox(t *testing.T) {
	for _, kind := range servedKinds {
		t.Run(kind, func(t *testing.T) {
			mocktest.TestSandbox(t, func(t *testing.T) mocktest.Env {
				command := mocktest.Shell
				var opts []mock.ServerOption
				if kind == "served" {
					command, opts = mocktest.Installed, append(opts, mock.WithOptions(mock.Options{Programs: mocktest.Programs()}))
				}
				server := newServer(t, kind, nil, opts...)
				cfg := connect(remote.Config{}, server)
				sb, closeClient, err := remote.NewE2BSandbox(t.Context(), cfg)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() {
					if err := closeClient(); err != nil {
						t.Error(err)
					}
				})
				return mocktest.Env{Sandbox: sb, Dir: "/home/user", Command: command}
			})
		})
	}
}
