package e2b_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log"
	"os"
	"strings"
	"time"

	"github.com/osiris-pipelines/remote/e2b"
)

// sandbox would be made by Client.CreateSandbox or Client.Connect.
func sandbox() *e2b.Sandbox { panic("not run") }

// A program that was uploaded is not executable yet.
func ExampleSandbox_ExecuteCommand() {
	ctx, s := context.Background(), sandbox()
	f, err := os.Open("program")
	if err != nil {
		log.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		log.Fatal(err)
	}
	if err := s.Upload(ctx, "/opt/program", f, info.Size(), e2b.WithGzip()); err != nil {
		log.Fatal(err)
	}
	result, err := s.ExecuteCommand(ctx, e2b.Command{
		Path:    "/bin/sh",
		Args:    []string{"-c", `chmod 755 "$0" && exec "$0" "$@"`, "/opt/program", "--version"},
		Timeout: time.Minute,
	})
	if err != nil {
		log.Fatal(err)
	}
	if result.Code != 0 {
		log.Fatalf("%s: %s", result.ExitStatus, result.Stderr)
	}
	fmt.Printf("%s", result.Stdout)
}

func ExampleSandbox_Start() {
	ctx, s := context.Background(), sandbox()
	p, err := s.Start(ctx, e2b.Command{Path: "sort", Stdin: true, Stderr: os.Stderr})
	if err != nil {
		log.Fatal(err)
	}
	defer p.Close()
	if _, err := io.Copy(p.Stdin(), strings.NewReader("b\na\n")); err != nil {
		log.Fatal(err)
	}
	p.Stdin().Close()
	lines := bufio.NewScanner(p.Stdout())
	for lines.Scan() {
		fmt.Println(lines.Text())
	}
	if err := lines.Err(); err != nil {
		log.Fatal(err) // the connection was lost; Wait still works
	}
	status, err := p.Wait(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(status)
}

func ExampleSandbox_DownloadArtifacts() {
	ctx, s := context.Background(), sandbox()
	files, err := s.DownloadArtifacts(ctx, "/data/out", "artifacts", e2b.ArtifactOptions{
		Skipped: func(f e2b.FileInfo) { log.Printf("%s is not a regular file", f.Path) },
	})
	if err != nil {
		log.Fatal(err)
	}
	for _, f := range files {
		fmt.Println(f.Path, f.Size)
	}
}
