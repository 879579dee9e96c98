package e2b_test

import (
	"errors"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote/e2b"
	"github.com/osiris-pipelines/remote/mock"
)

func buildClient(t *testing.T, opts ...mock.ServerOption) (*mock.Server, *e2b.Client) {
	t.Helper()
	server, err := mock.NewServer(opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	client, err := e2b.NewClient(e2b.Config{APIKey: server.APIKey(), APIURL: server.URL(), SandboxURL: server.URL()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return server, client
}

// onMachines runs a test with the kinds of machines that run the steps of
// builds, and have files of their own.
func onMachines(t *testing.T, test func(*testing.T, *mock.Server, *e2b.Client)) {
	for name, option := range map[string]mock.ServerOption{
		"processes": mock.WithProcesses(),
		"envd":      mock.WithEnvd(os.Getenv("E2B_ENVD_BIN")),
	} {
		t.Run(name, func(t *testing.T) {
			switch {
			case runtime.GOOS == "windows":
				t.Skip("mock.WithProcesses does not work on Windows")
			case name == "envd" && os.Getenv("E2B_ENVD_BIN") == "":
				t.Skip("E2B_ENVD_BIN does not name a daemon of E2B to test against")
			}
			server, client := buildClient(t, option)
			if !server.Isolated() {
				t.Skip("needs sandboxes with files of their own:", server.Isolation())
			}
			test(t, server, client)
		})
	}
}

func textLayer(t *testing.T, name, text string) *e2b.Layer {
	t.Helper()
	l, err := e2b.NewLayer(e2b.LayerFile{Name: name, Mode: 0o755, Size: int64(len(text)), Open: func() (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader(text)), nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestBuildLife builds a template, makes a sandbox from it, builds it again
// from itself, and deletes it.
func TestBuildLife(t *testing.T) { onMachines(t, testBuildLife) }

func testBuildLife(t *testing.T, server *mock.Server, client *e2b.Client) {
	ctx := t.Context()
	options := e2b.BuildOptions{
		Name: "mine", Tags: []string{"v1", "default"}, CPU: 4, MemoryMB: 4096, FromTemplate: "base",
		Steps: []e2b.BuildStep{
			e2b.CopyStep(textLayer(t, "bin/hello", "#!/bin/sh\necho hello\n"), "/opt/tools", "root"),
			e2b.RunStep("echo built && /opt/tools/bin/hello > said"),
		},
	}
	var messages []string
	built, err := client.BuildTemplate(ctx, options, func(l e2b.BuildLog) { messages = append(messages, l.Message) })
	if err != nil {
		t.Fatalf("%v\n%s", err, strings.Join(messages, "\n"))
	}
	if !slices.ContainsFunc(messages, func(m string) bool { return strings.HasSuffix(m, "built") }) {
		t.Errorf("the build said %q", messages)
	}
	found, err := client.Template(ctx, "mine")
	if err != nil || found.ID != built.TemplateID || found.BuildID != built.ID || found.BuildStatus != e2b.BuildReady || found.CPU != 4 || found.MemoryMB != 4096 || found.SpawnCount != 0 {
		t.Errorf("%+v, %v; built %+v", found, err, built)
	}

	sandbox, err := client.CreateSandbox(ctx, e2b.CreateOptions{Template: "mine:v1"})
	if err != nil {
		t.Fatal(err)
	}
	result, err := sandbox.ExecuteCommand(ctx, e2b.Command{Path: "/bin/sh", Args: []string{"-c", "cat said; /opt/tools/bin/hello"}})
	if err != nil || string(result.Stdout) != "hello\nhello\n" {
		t.Errorf("%q, %v", result.Stdout, err)
	}
	if err := client.DeleteTemplate(ctx, "mine"); !errors.Is(err, e2b.ErrInvalid) {
		t.Errorf("DeleteTemplate of one that is used: %v", err)
	}
	if err := sandbox.Kill(ctx); err != nil {
		t.Error(err)
	}

	// The layer is there already.
	puts := func() (n int) {
		for _, r := range server.Requests() {
			if r.Method == "PUT" {
				n++
			}
		}
		return n
	}
	before := puts()
	options.FromTemplate, options.Tags = "mine", nil
	again, err := client.BuildTemplate(ctx, options, nil)
	if err != nil {
		t.Fatal(err)
	}
	if again.TemplateID != built.TemplateID || again.ID == built.ID || before != 1 || puts() != before {
		t.Errorf("%+v after %+v, %d and %d uploads", again, built, before, puts())
	}
	var builds []string
	for b, err := range client.Builds(ctx, built.TemplateID) {
		if err != nil || b.Status != e2b.BuildReady || b.FinishedAt.IsZero() {
			t.Errorf("%+v, %v", b, err)
		}
		builds = append(builds, b.ID)
	}
	if diff := cmp.Diff([]string{again.ID, built.ID}, builds); diff != "" {
		t.Errorf("builds (-want +got):\n%s", diff)
	}

	if id, err := client.AddTemplateTags(ctx, "mine:v1", "old"); err != nil || id != built.ID {
		t.Errorf("AddTemplateTags: %q, %v", id, err)
	}
	if err := client.RemoveTemplateTags(ctx, "mine", "v1"); err != nil {
		t.Error(err)
	}
	tags, err := client.TemplateTags(ctx, "mine")
	got := map[string]string{}
	for _, tag := range tags {
		got[tag.Name] = tag.BuildID
	}
	if diff := cmp.Diff(map[string]string{"default": again.ID, "old": built.ID}, got); diff != "" || err != nil {
		t.Errorf("tags: %v (-want +got):\n%s", err, diff)
	}
	if err := client.SetTemplatePublic(ctx, "mine", true); err != nil {
		t.Error(err)
	}
	if found, err := client.Template(ctx, "mine"); err != nil || !found.Public {
		t.Errorf("%+v, %v", found, err)
	}
	for range 2 { // the second time there is none
		if err := client.DeleteTemplate(ctx, "mine"); err != nil {
			t.Error(err)
		}
	}
	if _, err := client.Template(ctx, "mine"); !errors.Is(err, e2b.ErrNotFound) {
		t.Errorf("Template of one that was deleted: %v", err)
	}
}

// TestBuildFails has a step that fails, and shows its own last lines.
func TestBuildFails(t *testing.T) { onMachines(t, testBuildFails) }

func testBuildFails(t *testing.T, _ *mock.Server, client *e2b.Client) {
	built, err := client.BuildTemplate(t.Context(), e2b.BuildOptions{
		Name: "mine", FromTemplate: "base",
		Steps: []e2b.BuildStep{e2b.RunStep("echo first"), e2b.RunStep("echo one; echo two >&2; exit 3"), e2b.RunStep("echo never")},
	}, nil)
	var failed *e2b.BuildError
	if !errors.As(err, &failed) || failed.Step != "2" || failed.BuildID != built.ID || errors.Is(err, e2b.ErrBuildCanceled) {
		t.Fatalf("BuildTemplate: %v", err)
	}
	for _, want := range []string{"step 2", "one", "two"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v lacks %s", err, want)
		}
	}
	for _, other := range []string{"first", "never"} {
		if strings.Contains(err.Error(), other) {
			t.Errorf("%v has %s", err, other)
		}
	}
	found, err := client.Template(t.Context(), "mine")
	if err != nil || found.BuildID != "" || found.BuildStatus != e2b.BuildFailed {
		t.Errorf("%+v, %v", found, err)
	}
}

// TestBuildTags has tags, which take the place of "default".
func TestBuildTags(t *testing.T) {
	for name, tt := range map[string]struct {
		name string
		tags []string
		gone bool // by the name alone
	}{
		"none":         {name: "mine"},
		"of its own":   {name: "mine", tags: []string{"v1"}, gone: true},
		"in its name":  {name: "mine:v1", gone: true},
		"and default":  {name: "mine", tags: []string{"v1", "default"}},
		"beside names": {name: "mine:v1", tags: []string{"default"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, client := buildClient(t)
			if _, err := client.BuildTemplate(t.Context(), e2b.BuildOptions{Name: tt.name, Tags: tt.tags, FromTemplate: "base"}, nil); err != nil {
				t.Fatal(err)
			}
			_, err := client.CreateSandbox(t.Context(), e2b.CreateOptions{Template: "mine"})
			if tt.gone != errors.Is(err, e2b.ErrTemplate) || !tt.gone && err != nil {
				t.Errorf("CreateSandbox: %v", err)
			}
			if len(tt.tags) == 0 && !tt.gone {
				return
			}
			if _, err := client.CreateSandbox(t.Context(), e2b.CreateOptions{Template: "mine:v1"}); err != nil {
				t.Errorf("CreateSandbox with the tag: %v", err)
			}
		})
	}
}

// TestBuildSuperseded requests a build while another waits.
func TestBuildSuperseded(t *testing.T) {
	_, client := buildClient(t)
	o := e2b.BuildOptions{Name: "mine", FromTemplate: "base"}
	first, err := client.RequestBuild(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	second, err := client.RequestBuild(t.Context(), o)
	if err != nil || second.TemplateID != first.TemplateID {
		t.Fatalf("%+v, %v", second, err)
	}
	if err := client.StartBuild(t.Context(), first, o); !errors.Is(err, e2b.ErrBuildNotWaiting) || !errors.Is(err, e2b.ErrBuildCanceled) {
		t.Errorf("StartBuild of the first: %v", err)
	}
	if err := client.WaitBuild(t.Context(), first.TemplateID, first.ID, nil); !errors.Is(err, e2b.ErrBuildCanceled) {
		t.Errorf("WaitBuild of the first: %v", err)
	}
	if err := client.StartBuild(t.Context(), second, o); err != nil {
		t.Fatal(err)
	}
	if err := client.StartBuild(t.Context(), second, o); !errors.Is(err, e2b.ErrBuildNotWaiting) {
		t.Errorf("StartBuild, again: %v", err)
	}
	if err := client.WaitBuild(t.Context(), second.TemplateID, second.ID, nil); err != nil {
		t.Error(err)
	}
	if err := client.WaitBuild(t.Context(), second.TemplateID, "00000000-0000-4000-8000-000000000000", nil); !errors.Is(err, e2b.ErrNotFound) {
		t.Errorf("WaitBuild of none: %v", err)
	}
}

// TestBuildQuota has an account with as many builds as it may have.
func TestBuildQuota(t *testing.T) {
	_, client := buildClient(t, mock.WithBuildConcurrency(1))
	for _, name := range []string{"one", "two"} {
		_, err := client.RequestBuild(t.Context(), e2b.BuildOptions{Name: name, FromTemplate: "base"})
		if want := name == "two"; errors.Is(err, e2b.ErrQuota) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
}
