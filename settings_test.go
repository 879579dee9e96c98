package remote_test

import (
	"encoding/json"
	"errors"
	"flag"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spf13/pflag"

	"github.com/osiris-pipelines/remote"
)

var ignoreFuncs = cmpopts.IgnoreFields(remote.Config{}, "OpenSandbox", "Drivers")

func TestConfigJSON(t *testing.T) {
	for _, test := range []struct {
		name, json string
		want       remote.Config
	}{
		{"empty", `{}`, remote.Config{}},
		{"the specification's", `{"template":"base","cpu":2,"memory_gb":4,"timeout":300,"install_deps":true,"pass_env":["A","B"]}`,
			remote.Config{Template: "base", CPU: 2, MemoryGB: 4, Timeout: 300 * time.Second, InstallDeps: true, PassEnv: []string{"A", "B"}}},
		{"alias mem_gb", `{"mem_gb":0.5}`, remote.Config{MemoryGB: 0.5}},
		{"alias memory", `{"memory":8}`, remote.Config{MemoryGB: 8}},
		{"null", `null`, remote.Config{}},
		{"nulls", `{"cpu":null,"env":null}`, remote.Config{}},
		{"durations", `{"timeout":"10m","step_timeout":"90"}`, remote.Config{Timeout: 10 * time.Minute, StepTimeout: 90 * time.Second}},
		{"fractions of a second", `{"timeout":1.5,"step_timeout":0.25}`, remote.Config{Timeout: 1500 * time.Millisecond, StepTimeout: 250 * time.Millisecond}},
		{"lease and admission", `{"lease":"1m","on_host_loss":"pause","max_sandboxes":20,"create_rate":0.5,"create_wait":600}`,
			remote.Config{Lease: time.Minute, OnHostLoss: remote.Pause, MaxSandboxes: 20, CreateRate: 0.5, CreateWait: 10 * time.Minute}},
		{"the rest", `{"env":{"K":"V"},"concurrency":3,"on_failure":"stop_dependents","root":"/r","api_key":"e2b_0","domain":"d","api_url":"http://a","sandbox_url":"http://s","gpu":0,"spot":false}`,
			remote.Config{Env: map[string]string{"K": "V"}, Concurrency: 3, OnFailure: remote.StopDependents, Root: "/r",
				APIKey: "e2b_0", Domain: "d", APIURL: "http://a", SandboxURL: "http://s"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var got remote.Config
			if err := json.Unmarshal([]byte(test.json), &got); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got, ignoreFuncs); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			// And back, without what is secret.
			b, err := json.Marshal(got)
			if err != nil || strings.Contains(string(b), "e2b_0") || strings.Contains(string(b), `"V"`) {
				t.Fatalf("marshalled: %s, %v", b, err)
			}
			var again remote.Config
			if err := json.Unmarshal(b, &again); err != nil {
				t.Fatal(err)
			}
			test.want.APIKey, test.want.Env = "", nil
			if diff := cmp.Diff(test.want, again, ignoreFuncs); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestConfigJSONRefuses(t *testing.T) {
	for _, test := range []struct{ name, json, want string }{
		{"unknown key", `{"cpus":2}`, `unknown key "cpus"; known are`},
		{"twice", `{"cpu":1,"cpu":2}`, `keys "cpu" and "cpu" set the same`},
		{"twice by alias", `{"memory_gb":1,"memory":2}`, `keys "memory_gb" and "memory" set the same`},
		{"no object", `[]`, "want an object"},
		{"text for a number", `{"cpu":"2"}`, `key "cpu": want a whole number`},
		{"negative", `{"cpu":-1}`, "want a whole number, 0 or more"},
		{"fraction of a core", `{"cpu":1.5}`, "want a whole number"},
		{"memory", `{"memory":"4G"}`, `key "memory": want a number of GiB`},
		{"rate", `{"create_rate":-1}`, "want a number a second"},
		{"timeout as text", `{"timeout":"soon"}`, "want a number of seconds"},
		{"timeout too long", `{"timeout":1e300}`, "want a number of seconds"},
		{"list", `{"pass_env":"A"}`, "want a list of names"},
		{"object", `{"env":["A=B"]}`, "want an object of names and values"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := remote.Config{CPU: 7}
			err := json.Unmarshal([]byte(test.json), &got)
			if !errors.Is(err, remote.ErrInvalid) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want ErrInvalid with %q", err, test.want)
			}
			if diff := cmp.Diff(remote.Config{CPU: 7}, got, ignoreFuncs); diff != "" {
				t.Errorf("it was changed all the same:\n%s", diff)
			}
		})
	}
	secret := "s3cr3t-value"
	err := json.Unmarshal([]byte(`{"env":"`+secret+`"}`), new(remote.Config))
	if err == nil || strings.Contains(err.Error(), secret) {
		t.Errorf("the error shows what was given: %v", err)
	}
}

// The same command line means the same to both flag packages.
func TestFlags(t *testing.T) {
	args := []string{"--e2b", "--e2b-cpu=2", "--e2b-mem", "4.5", "--e2b-timeout", "90", "--e2b-install-deps", "--e2b-template", "big",
		"--e2b-env", "A=1", "--e2b-env", "B=x=y", "--e2b-pass-env", "HOME", "--e2b-pass-env", "PATH"}
	want := remote.Config{CPU: 2, MemoryGB: 4.5, Timeout: 90 * time.Second, InstallDeps: true, Template: "big",
		Env: map[string]string{"A": "1", "B": "x=y"}, PassEnv: []string{"HOME", "PATH"}}

	t.Run("flag", func(t *testing.T) {
		var got remote.Config
		fs := flag.NewFlagSet("test", flag.ContinueOnError)
		e2b := got.AddFlags(fs)
		if err := fs.Parse(args); err != nil || !*e2b {
			t.Fatalf("e2b %v, %v", *e2b, err)
		}
		if diff := cmp.Diff(want, got, ignoreFuncs); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	})
	t.Run("pflag", func(t *testing.T) {
		var got remote.Config
		goFlags := flag.NewFlagSet("test", flag.ContinueOnError)
		e2b := got.AddFlags(goFlags)
		fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
		fs.AddGoFlagSet(goFlags)
		if err := fs.Parse(args); err != nil || !*e2b {
			t.Fatalf("e2b %v, %v", *e2b, err)
		}
		if diff := cmp.Diff(want, got, ignoreFuncs); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	})
}

func TestFlagErrors(t *testing.T) {
	parse := func(args ...string) error {
		var c remote.Config
		fs := flag.NewFlagSet("test", flag.ContinueOnError)
		fs.SetOutput(io.Discard)
		c.AddFlags(fs)
		if err := fs.Parse(args); err != nil {
			return err
		}
		_, err := remote.NewLocalAdapter(c)
		return err
	}
	for _, test := range []struct{ name, flag, value, want string }{
		{"cores", "--e2b-cpu", "two", "want a whole number"},
		{"memory", "--e2b-mem", "NaN", "want a number of GiB"},
		{"timeout", "--e2b-timeout", "-3s", "want a number of seconds"},
		{"pair without a name", "--e2b-env", "s3cr3t", "it wants NAME=VALUE"},
		{"the account's key", "--e2b-pass-env", "E2B_API_KEY", "it would give the sandbox your account"},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := parse(test.flag, test.value)
			if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "s3cr3t") {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
	for _, c := range []remote.Config{{GPU: 1}, {Spot: true}} {
		if _, err := remote.NewE2BTransparentProxy(c); !errors.Is(err, remote.ErrUnsupported) {
			t.Errorf("%+v: got %v, want ErrUnsupported", c, err)
		}
	}
}

// README.md has the table of the settings as the code has it.
func TestSettingsDocumented(t *testing.T) {
	b, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range remote.Settings() {
		if row := settingRow(s); !strings.Contains(string(b), row+"\n") {
			t.Errorf("README.md lacks the row\n%s", row)
		}
	}
}

func settingRow(s remote.Setting) string {
	keys := "`" + s.Key + "`"
	for _, alias := range s.Aliases {
		keys += ", `" + alias + "`"
	}
	flag := ""
	if s.Flag != "" {
		flag = "`--" + s.Flag + "`"
	}
	return "| " + keys + " | " + flag + " | " + s.Default + " | " + strings.ReplaceAll(s.Usage, "`", "") + " |"
}

func FuzzConfigJSON(f *testing.F) {
	f.Add([]byte(`{"template":"base","cpu":2,"memory_gb":4,"timeout":300,"env":{"A":"B"},"pass_env":["C"]}`))
	f.Add([]byte(`{"cpu":null,"cpu":1}`))
	f.Add([]byte(`{"timeout":1e308}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var c remote.Config
		err := c.UnmarshalJSON(b)
		if err != nil && !errors.Is(err, remote.ErrInvalid) {
			t.Errorf("%q: %v does not match ErrInvalid", b, err)
		}
		if err == nil && (c.CPU < 0 || c.MemoryGB < 0 || c.Timeout < 0 || c.Concurrency < 0) {
			t.Errorf("%q gives %+v", b, c)
		}
	})
}
