package mock_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/mock"
	"github.com/osiris-pipelines/remote/worker"
)

// eventDriver logs a hundred events.
type eventDriver struct{}

func (eventDriver) Run(_ context.Context, step *worker.Step) (*worker.Result, error) {
	for n := range 100 {
		step.LogEvent("tick", map[string]any{"n": n})
	}
	return nil, nil
}

// A pipeline runs while the connections by which its events come are cut five
// times. A script that was printed is run again by mock.ParseScript.
func ExampleProxy() {
	drivers := worker.NewRegistry()
	drivers.Register("ticks", worker.Transform, func() worker.Driver { return eventDriver{} })
	server, err := mock.NewServer(mock.WithOptions(mock.Options{Drivers: drivers}))
	if err != nil {
		log.Fatal(err)
	}
	defer server.Close()
	const seed = 1
	script := mock.RandomCuts(seed, 5, 10_000, "tail")
	proxy, err := mock.NewProxy(server.URL(), script)
	if err != nil {
		log.Fatal(err)
	}
	defer proxy.Close()

	dir, err := os.MkdirTemp("", "session")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	adapter, err := remote.NewE2BTransparentProxy(remote.Config{
		Drivers: drivers, WorkerPath: filepath.Join("..", "testdata", "worker.txt"), // any file: the worker in memory is the real one
		APIKey: server.APIKey(), APIURL: proxy.URL(), SandboxURL: proxy.URL(),
		Wheelhouse: "off", // nothing is kept for other runs
	})
	if err != nil {
		log.Fatal(err)
	}
	defer adapter.Close()
	ticks, inOrder := 0, true
	session := &remote.ExecutionContext{SessionID: "s", LogsDir: dir, OnEvent: func(_ context.Context, e remote.Event) error {
		if e.Name == "tick" {
			var fields struct{ N int }
			inOrder = inOrder && e.Decode(&fields) == nil && fields.N == ticks
			ticks++
		}
		return nil
	}}
	manifest := &remote.Manifest{Steps: []remote.Step{{ID: "a", Driver: "ticks"}}}
	_, _, err = remote.Run(context.Background(), adapter, manifest, session)
	fmt.Println(ticks, inOrder, err)
	fmt.Println("cuts:", proxy.Stats().Struck)
	// Output:
	// 100 true <nil>
	// cuts: 5
}
