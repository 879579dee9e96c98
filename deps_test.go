package remote_test

import (
	"os/exec"
	"strings"
	"testing"
)

// TestDependencies checks the arrows of ARCHITECTURE.md.
func TestDependencies(t *testing.T) {
	const module = "github.com/osiris-pipelines/remote"
	ours := func(pkg string) []string {
		t.Helper()
		out, err := exec.Command("go", "list", "-deps", pkg).CombinedOutput()
		if err != nil {
			t.Fatalf("go list %s: %v\n%s", pkg, err, out)
		}
		return strings.Fields(string(out))
	}
	for _, tt := range []struct {
		pkg  string
		deny []string // prefixes of import paths
	}{
		{module, []string{module + "/worker/drivers", module + "/mock", "testing", "google.golang.org/grpc"}},
		{module + "/rpc", []string{module + "/worker", module + "/mock", module + "/secrets", module + "/internal", "net/http"}},
		{module + "/secrets", []string{module + "/rpc", module + "/worker", module + "/connections", "github.com", "golang.org"}},
		{module + "/connections", []string{module + "/rpc", module + "/worker", module + "/e2b", module + "/mock", module + "/internal", "net/http", "testing"}},
		{module + "/worker/python", []string{module + "/worker/drivers", module + "/e2b", module + "/mock", module + "/connections", "net/http", "testing"}},
		{module + "/e2b", []string{module + "/rpc", module + "/worker", module + "/mock", module + "/secrets", module + "/connections", module + "/internal/inproc", module + "/internal/bare", "testing", "google.golang.org/grpc", "github.com/apache"}},
		{module + "/worker", []string{module + "/connections", module + "/worker/drivers", module + "/mock", module + "/internal", "net/http", "testing", "google.golang.org/grpc"}},
		{module + "/mock", []string{"testing", module + "/worker/drivers"}},
	} {
		for _, dep := range ours(tt.pkg) {
			if tt.pkg != module && dep == module && tt.pkg != module+"/mock" {
				t.Errorf("%s imports the root", tt.pkg)
			}
			for _, deny := range tt.deny {
				if dep != tt.pkg && (dep == deny || strings.HasPrefix(dep, deny+"/") || strings.HasSuffix(deny, ".com") && strings.HasPrefix(dep, deny)) {
					t.Errorf("%s imports %s", tt.pkg, dep)
				}
			}
		}
	}
}
