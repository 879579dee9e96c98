package remote_test

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/mock"
)

func TestSmoke(t *testing.T) {
	for _, name := range []string{"inprocess", "local", "mock"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			var a interface {
				remote.ExecutionAdapter
				Close() error
			}
			var err error
			switch name {
			case "inprocess":
				a, err = remote.NewLocalAdapter(remote.Config{Drivers: testDrivers(), InProcess: true})
			case "local":
				a, err = remote.NewLocalAdapter(remote.Config{Drivers: testDrivers()})
			case "mock":
				p := mock.NewProvider(&mock.Options{Drivers: testDrivers()})
				a, err = remote.NewE2BTransparentProxy(remote.Config{Drivers: testDrivers(), OpenSandbox: p.OpenSandbox})
			}
			if err != nil {
				t.Fatal(err)
			}
			defer a.Close()
			ec := &remote.ExecutionContext{SessionID: "s1", LogsDir: dir, BasePath: dir, StartedAt: time.Now()}
			m := &remote.Manifest{Name: "smoke", Steps: []remote.Step{
				{ID: "a", Driver: "test.rows", Config: map[string]any{"start": 1, "rows": 3}},
				{ID: "b", Driver: "test.rows", Config: map[string]any{"start": 10, "rows": 2}},
				{ID: "c", Driver: "test.concat", Needs: []string{"a", "b"}},
				{ID: "d", Driver: "test.write", Needs: []string{"c"}, Config: map[string]any{"path": "out/n.txt"}},
			}}
			res, files, err := remote.Run(context.Background(), a, m, ec)
			for _, f := range []string{"events.jsonl", "metrics.jsonl", "osiris.log", "status.json", "artifacts/_system/run_card.json", "artifacts/d/out/n.txt"} {
				b, err := os.ReadFile(dir + "/" + f)
				t.Logf("%s %v\n%s", f, err, b)
			}
			t.Logf("%+v\n%+v\n%v", res, files, err)
			if err != nil {
				t.Fatal(err)
			}
		})
	}
}
