package mock_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/mock"
)

// The tests of this package do not call worker.Main: started again as a worker,
// their program would run them all once more.
func TestProgramThatIsNoWorker(t *testing.T) {
	server, err := mock.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	for name, make := range map[string]func() error{
		"local": func() error {
			_, err := remote.NewLocalAdapter(remote.Config{})
			return err
		},
		"proxy": func() error {
			_, err := remote.NewE2BTransparentProxy(remote.Config{APIKey: server.APIKey(), APIURL: server.URL(), SandboxURL: server.URL()})
			return err
		},
	} {
		err := make()
		if !errors.Is(err, remote.ErrInvalid) || !strings.Contains(err.Error(), "call it first in main") {
			t.Errorf("%s: got %v", name, err)
		}
	}
}
