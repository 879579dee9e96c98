package main

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/osiris-pipelines/remote/mock"
	"github.com/osiris-pipelines/remote/worker"
)

func TestMain(m *testing.M) {
	worker.Main(worker.NewRegistry())
	os.Exit(m.Run())
}

func TestDoctor(t *testing.T) {
	server, err := mock.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	for _, v := range server.Env() {
		name, value, _ := strings.Cut(v, "=")
		t.Setenv(name, value)
	}
	for _, test := range []struct {
		name   string
		args   []string
		key    string
		code   int
		stdout string
	}{
		{"well", nil, server.APIKey(), 0, "runs can start"},
		{"other size", []string{"--e2b-cpu", "32"}, server.APIKey(), 1, "-> name another template"},
		{"no key", nil, "", 1, "E2B_API_KEY"},
		{"argument", []string{"x"}, server.APIKey(), 2, ""},
		{"unknown flag", []string{"--nope"}, server.APIKey(), 2, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Setenv("E2B_API_KEY", test.key)
			var stdout, stderr bytes.Buffer
			code := doctor(t.Context(), test.args, &stdout, &stderr)
			if code != test.code || !strings.Contains(stdout.String(), test.stdout) {
				t.Errorf("exit code %d, want %d\n%s%s", code, test.code, &stdout, &stderr)
			}
		})
	}
}
