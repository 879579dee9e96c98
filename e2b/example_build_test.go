package e2b_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"testing/fstest"

	"github.com/osiris-pipelines/remote/e2b"
	"github.com/osiris-pipelines/remote/mock"
)

// exampleClient is a client of a server on this computer.
func exampleClient() (client *e2b.Client, end func()) {
	server, err := mock.NewServer()
	if err != nil {
		log.Fatal(err)
	}
	client, err = e2b.NewClient(e2b.Config{APIKey: server.APIKey(), APIURL: server.URL(), SandboxURL: server.URL()})
	if err != nil {
		log.Fatal(err)
	}
	return client, func() {
		if err := errors.Join(client.Close(), server.Close()); err != nil {
			log.Print(err)
		}
	}
}

// A template with more memory, and a directory of files in it.
func ExampleClient_BuildTemplate() {
	ctx := context.Background()
	client, end := exampleClient() // for E2B's cloud: e2b.NewClient(e2b.Config{})
	defer end()

	// Of a directory: e2b.NewLayerFS(os.DirFS("reports")).
	files, err := e2b.NewLayerFS(fstest.MapFS{"run.sh": {Data: []byte("#!/bin/sh\ndate\n"), Mode: 0o755}})
	if err != nil {
		log.Print(err)
		return
	}
	build, err := client.BuildTemplate(ctx, e2b.BuildOptions{
		Name:         "reports",
		CPU:          4,
		MemoryMB:     8192,
		FromTemplate: "base",
		Steps:        []e2b.BuildStep{e2b.CopyStep(files, "/opt/reports", "root")},
	}, func(line e2b.BuildLog) {
		// It takes a minute: show what it does.
		fmt.Fprintln(os.Stderr, line.Step, line.Message)
	})
	var failed *e2b.BuildError
	switch {
	case errors.As(err, &failed):
		fmt.Println("step", failed.Step, "failed:", failed.Message)
		return
	case err != nil:
		log.Print(err)
		return
	}
	sandbox, err := client.CreateSandbox(ctx, e2b.CreateOptions{Template: "reports"})
	if err != nil {
		log.Print(err)
		return
	}
	defer sandbox.Kill(ctx)
	info, err := sandbox.Info(ctx)
	if err != nil {
		log.Print(err)
		return
	}
	fmt.Println(info.CPU, "CPUs,", info.MemoryMB, "MiB,", info.TemplateID == build.TemplateID)
	// Output: 4 CPUs, 8192 MiB, true
}

// What the account's templates are, and when they were last used.
func ExampleClient_Templates() {
	ctx := context.Background()
	client, end := exampleClient()
	defer end()

	_, err := client.BuildTemplate(ctx, e2b.BuildOptions{Name: "reports", CPU: 1, MemoryMB: 512, FromTemplate: "base"}, nil)
	if err != nil {
		log.Print(err)
		return
	}
	for t, err := range client.Templates(ctx) {
		if err != nil {
			log.Print(err)
			return
		}
		if t.LastSpawnedAt.IsZero() {
			fmt.Println(t.Names, t.CPU, t.MemoryMB, t.BuildStatus, "never used")
		}
	}
	// Output:
	// [mock-team/reports] 1 512 ready never used
	// [base] 2 512 ready never used
}
