package rpc_test

import (
	"encoding/json"
	"testing"

	"github.com/osiris-pipelines/remote/rpc"
)

func TestStringAt(t *testing.T) {
	const doc = `{"path":"a.csv","files":["x",{"name":"y"}],"a/b":{"~":"z"},"":"empty","n":1}`
	for pointer, want := range map[string]string{
		"/path": "a.csv", "/files/0": "x", "/files/1/name": "y", "/a~1b/~0": "z", "/": "empty",
		"": "", "path": "", "/n": "", "/none": "", "/files": "", "/files/2": "", "/files/-1": "", "/files/x": "", "/path/0": "",
	} {
		var config map[string]any
		if err := json.Unmarshal([]byte(doc), &config); err != nil {
			t.Fatal(err)
		}
		got, set, ok := rpc.StringAt(config, pointer)
		if got != want || ok != (want != "") {
			t.Errorf("%q leads to %q, %v", pointer, got, ok)
		}
		if !ok {
			continue
		}
		set("new")
		if got, _, _ := rpc.StringAt(config, pointer); got != "new" {
			t.Errorf("%q was set, and leads to %q", pointer, got)
		}
	}
}
