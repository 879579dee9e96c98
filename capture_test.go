package remote_test

import (
	"errors"
	"net/http"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/mock"
)

// The list of artifacts is asked for again where its output got lost: the
// process that prints it is found, but what it printed is not.
func TestSealAnswerLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var starts atomic.Int64
		zero := int64(0)
		var server *mock.Server
		c := newCloud(t, mock.WithFault(func(r mock.HTTPRequest) *mock.HTTPFault {
			if r.Procedure == "process.Process/Start" && starts.Load() > 0 && starts.Add(-1) == 0 {
				return &mock.HTTPFault{CutResponse: &zero}
			}
			return nil
		}))
		server = c.server
		a, _ := c.proxy(remote.Config{Timeout: time.Hour})
		ec := newContext(t, "s")
		p, err := a.Prepare(t.Context(), sleep(time.Hour), ec)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			time.Sleep(time.Minute)
			sb := server.Sandbox(server.Alive()[0].ID)
			for _, proc := range sb.Processes() {
				if slices.Contains(proc.Command.Args, "supervise") {
					sb.KillProcess(proc.PID)
				}
			}
		}()
		if _, err := a.Execute(t.Context(), p, ec); !errors.Is(err, remote.ErrWorkerCrash) {
			t.Fatalf("got %v, want ErrWorkerCrash", err)
		}
		before := countStarts(server)
		starts.Store(1)
		files, err := a.Collect(t.Context(), p, ec)
		if err != nil || len(files.Artifacts) == 0 {
			t.Errorf("Collect: %v", err)
		}
		if n := countStarts(server) - before; n != 2 {
			t.Errorf("%d processes were started to list artifacts, want 2", n)
		}
	})
}

func countStarts(s *mock.Server) (n int) {
	for _, r := range s.Requests() {
		if r.Procedure == "process.Process/Start" && r.Method == http.MethodPost {
			n++
		}
	}
	return n
}
