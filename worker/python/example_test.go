package python_test

import (
	"fmt"
	"log"
	"os"
	"os/exec"
	"strings"

	"github.com/osiris-pipelines/remote/worker/python"
)

func ExampleParseIndex() {
	index, err := python.ParseIndex("https://me:s%40crifice@packages.example.com/simple/")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(index)
	fmt.Println(index.Username, index.Password)
	fmt.Println(index.Username.Reveal(), index.Password.Reveal())

	_, err = python.ParseIndex("https://me:sacri/fice@packages.example.com/simple/")
	fmt.Println(err)
	// Output:
	// https://packages.example.com/simple/
	// ***MASKED*** ***MASKED***
	// me s@crifice
	// python: package index: a / in a user name or password has to be written as %2F
}

func ExampleNewCredentials() {
	private, err := python.ParseIndex("https://me:sacrifice@packages.example.com/simple/")
	if err != nil {
		log.Fatal(err)
	}
	credentials, err := python.NewCredentials(private)
	if err != nil {
		log.Fatal(err)
	}
	defer credentials.Close()

	cmd := exec.Command("python3", "-m", "pip", "install", "orders")
	cmd.Env = append(os.Environ(), credentials.Env()...)
	for _, pair := range cmd.Environ() {
		if strings.HasPrefix(pair, "PIP_INDEX_URL=") {
			fmt.Println(pair)
		}
	}
	// Output:
	// PIP_INDEX_URL=https://packages.example.com/simple/
}
