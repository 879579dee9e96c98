package remote_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"regexp"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/mock"
	"github.com/osiris-pipelines/remote/worker"
	"github.com/osiris-pipelines/remote/worker/drivers/csv"
)

// Before a run, see what it would have built. Here the account is a server of
// package mock.
func ExampleE2BTransparentProxy_Explain() {
	drivers := worker.NewRegistry()
	csv.Register(drivers)
	server, err := mock.NewServer(mock.WithOptions(mock.Options{Drivers: drivers}))
	if err != nil {
		log.Fatal(err)
	}
	defer server.Close()
	adapter, err := remote.NewE2BTransparentProxy(remote.Config{
		Drivers: drivers, WorkerPath: "testdata/worker.txt",
		CPU: 4, MemoryGB: 8, AllowTemplateBuild: true,
		APIKey: server.APIKey(), APIURL: server.URL(), SandboxURL: server.URL(),
	})
	if err != nil {
		log.Fatal(err)
	}
	defer adapter.Close()
	dir, err := os.MkdirTemp("", "session-*")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	ctx := context.Background()
	manifest, err := remote.LoadManifest("testdata/osiris/compiled/csv-copy/manifest.yaml")
	if err != nil {
		log.Fatal(err)
	}
	prepared, err := adapter.Prepare(ctx, manifest, &remote.ExecutionContext{SessionID: "nightly", BasePath: "testdata/osiris", LogsDir: dir})
	if err != nil {
		log.Fatal(err)
	}
	plan, err := adapter.Explain(ctx, prepared, remote.ExplainOptions{})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(plan.Way, plan.Status, plan.Builds())
	fmt.Print(regexp.MustCompile("osiris-[0-9a-f]{32}").ReplaceAllString(plan.String(), "osiris-..."))
	// Output:
	// derived missing true
	// start: from the template "osiris-..." (missing), which will have all that it takes
	// start: would build osiris-... from the template "base" with 4 CPUs and 8 GiB of memory and the worker program (missing), since it asks for 4 CPUs and 8 GiB of memory, and the template "base" has 2 CPUs and 0.5 GiB of memory
	// start: building it is allowed by Config.AllowTemplateBuild (allow_template_build, --e2b-allow-template-build)
	// start: what it takes is not known yet
}
