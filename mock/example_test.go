package mock_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log"
	"strings"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/mock"
)

// A program of the test's own runs in a sandbox, as a process.
func Example() {
	ctx := context.Background()
	provider := mock.NewProvider(&mock.Options{
		Programs: map[string]mock.Program{
			"shout": func(_ context.Context, p *mock.Proc) int {
				for lines := bufio.NewScanner(p.Stdin); lines.Scan(); {
					fmt.Fprintln(p.Stdout, strings.ToUpper(lines.Text())+p.Args[0])
				}
				return 3
			},
		},
	})
	sandbox, err := provider.OpenSandbox(ctx, remote.SandboxConfig{Template: "base"})
	if err != nil {
		log.Fatal(err)
	}

	process, err := sandbox.Start(ctx, remote.Command{Path: "/usr/local/bin/shout", Args: []string{"!"}})
	if err != nil {
		log.Fatal(err)
	}
	io.WriteString(process.Stdin(), "hello\n")
	process.Stdin().Close()
	out, err := io.ReadAll(process.Stdout())
	if err != nil {
		log.Fatal(err)
	}
	status, err := process.Wait(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Print(string(out))
	fmt.Println(status)

	if err := sandbox.Kill(ctx); err != nil {
		log.Fatal(err)
	}
	fmt.Println("left behind:", len(provider.Alive()))
	// Output:
	// HELLO!
	// exit code 3
	// left behind: 0
}

// The connection is lost after ten bytes of every upload.
func ExampleFailAfter() {
	sandbox := mock.NewSandbox(&mock.Options{
		Fault: func(_ context.Context, call mock.Call) error {
			if call.Op == mock.OpUpload {
				return mock.FailAfter(10, io.ErrUnexpectedEOF)
			}
			return nil
		},
	})
	err := sandbox.Upload(context.Background(), "/tmp/data", strings.NewReader("more than ten bytes"), 19)
	fmt.Println(err)
	fmt.Println(sandbox.Calls()[0].Bytes, "bytes went through")
	// Output:
	// mock: sandbox mock-1: upload "/tmp/data": unexpected EOF
	// 10 bytes went through
}
