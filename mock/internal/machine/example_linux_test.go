package machine_test

import (
	"fmt"
	"io"
	"log"

	"github.com/osiris-pipelines/remote/mock/internal/envd"
	"github.com/osiris-pipelines/remote/mock/internal/machine"
)

func ExampleNew() {
	m, err := machine.New(machine.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = m.Close() }()

	user, err := m.User("")
	if err != nil {
		log.Fatal(err)
	}
	p, err := m.Start(envd.Command{Path: "/bin/echo", Args: []string{"hello"}, Dir: user.Home, User: user})
	if err != nil {
		log.Fatal(err)
	}
	out, err := io.ReadAll(p.Stdout())
	fmt.Printf("%s%v %+v\n", out, err, p.Wait())
	// Output:
	// hello
	// <nil> {Code:0 Signal:signal 0}
}
