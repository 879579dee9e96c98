package remote_test

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/e2b"
	"github.com/osiris-pipelines/remote/mock"
)

// derived is a name that this library gives to a template.
func derived(digit string) string { return "osiris-" + strings.Repeat(digit, 32) }

// templateVerdicts are what a sweep says of each template.
func templateVerdicts(r *remote.SweepReport) map[string]string {
	out := make(map[string]string)
	for _, t := range r.Templates {
		switch {
		case t.Deleted:
			out[t.Name] = "deleted"
		case t.Err != nil:
			out[t.Name] = "not deleted"
		case t.Unused:
			out[t.Name] = "unused"
		default:
			out[t.Name] = "left: " + t.Reason
		}
	}
	return out
}

// A sweep deletes derived templates that nobody used, and no others, whatever the
// clocks say.
func TestSweepTemplates(t *testing.T) {
	t.Parallel()
	for _, skew := range []time.Duration{0, -30 * time.Hour, 30 * time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			strange := []string{
				"base", "osiris-x", derived("a") + "0", derived("a")[:38], strings.ToUpper(derived("a")), "my-" + derived("a"),
				"osiris-" + strings.Repeat("g", 32), "osiris_" + strings.Repeat("a", 32), "mock-team/osiris-", derived("a") + "-2",
				strings.Repeat("a", 32),
			}
			var templates []mock.Template
			for _, name := range strange {
				templates = append(templates, mock.Template{Names: []string{name}})
			}
			templates = append(templates,
				mock.Template{Names: []string{"also-mine", derived("1")}}, mock.Template{Names: []string{derived("2"), "also-mine-2"}},
				mock.Template{Names: []string{derived("3"), derived("4")}}, mock.Template{}, // one without a name
				mock.Template{Names: []string{derived("a")}}, mock.Template{Names: []string{"mock-team/" + derived("b")}},
				mock.Template{Names: []string{derived("c")}}, mock.Template{Names: []string{derived("d")}}, mock.Template{Names: []string{derived("e")}},
			)
			c := newCloud(t, mock.WithTemplates(templates...), mock.WithClock(func() time.Time { return time.Now().Add(skew) }))
			tr := c.net.transport()
			defer tr.CloseIdleConnections()
			user, err := e2b.NewClient(e2b.Config{APIKey: c.server.APIKey(), APIURL: c.server.URL(), SandboxURL: c.server.URL(), Transport: tr})
			if err != nil {
				t.Fatal(err)
			}
			defer user.Close()
			use := func(name string, life time.Duration) *e2b.Sandbox {
				t.Helper()
				sb, err := user.CreateSandbox(t.Context(), e2b.CreateOptions{Template: name, Timeout: life})
				if err != nil {
					t.Fatal(err)
				}
				return sb
			}
			runs, paused := use(derived("c"), 20*time.Minute), use(derived("d"), 20*time.Minute)
			if err := user.Pause(t.Context(), paused.ID()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(8 * time.Minute)
			use(derived("b"), time.Minute)
			time.Sleep(4 * time.Minute)

			sweeper, n := c.proxy(remote.Config{})
			sweep := func(o remote.SweepOptions, want map[string]string, wantErr error) {
				t.Helper()
				report, err := sweeper.Sweep(t.Context(), o)
				if !errors.Is(err, wantErr) {
					t.Errorf("%+v: got the error %v, want %v", o, err, wantErr)
				}
				if diff := cmp.Diff(want, templateVerdicts(report)); diff != "" {
					t.Errorf("%+v: -want +got:\n%s\n%s", o, diff, report)
				}
			}
			recent := "left: it was used in the last 10m0s"
			sweep(remote.SweepOptions{}, map[string]string{}, nil)
			sweep(remote.SweepOptions{UnusedTemplates: 13 * time.Minute, DryRun: true}, map[string]string{
				derived("a"): "left: it was used in the last 13m0s", derived("b"): "left: it was used in the last 13m0s", derived("c"): "left: it was used in the last 13m0s",
				derived("d"): "left: it was used in the last 13m0s", derived("e"): "left: it was used in the last 13m0s",
			}, nil)
			sweep(remote.SweepOptions{UnusedTemplates: 10 * time.Minute, DryRun: true},
				map[string]string{derived("a"): "unused", derived("b"): recent, derived("c"): "left: sandboxes use it", derived("d"): "left: sandboxes use it", derived("e"): "unused"}, nil)
			lose := func(method, path string) {
				f := func(req *http.Request) bool { return req.Method == method && strings.HasPrefix(req.URL.Path, path) }
				n.lose.Store(&f)
			}
			lose(http.MethodGet, "/v2/templates")
			sweep(remote.SweepOptions{UnusedTemplates: 10 * time.Minute}, map[string]string{}, errNetwork)
			lose(http.MethodGet, "/v2/")
			_, err = sweeper.Sweep(t.Context(), remote.SweepOptions{UnusedTemplates: 10 * time.Minute})
			contains(t, fmt.Sprint(err), "list sandboxes", "list templates")
			lose(http.MethodDelete, "/templates/")
			sweep(remote.SweepOptions{UnusedTemplates: 10 * time.Minute},
				map[string]string{derived("a"): "not deleted", derived("b"): recent, derived("c"): "not deleted", derived("d"): "not deleted", derived("e"): "not deleted"}, errNetwork)
			lose(http.MethodGet, "/v2/sandboxes") // which keeps no template
			sweep(remote.SweepOptions{UnusedTemplates: 10 * time.Minute},
				map[string]string{derived("a"): "deleted", derived("b"): recent, derived("c"): "left: sandboxes use it", derived("d"): "left: sandboxes use it", derived("e"): "deleted"}, errNetwork)
			n.lose.Store(nil)
			for _, sb := range []*e2b.Sandbox{runs, paused} {
				if err := sb.Kill(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			sweep(remote.SweepOptions{UnusedTemplates: 10 * time.Minute},
				map[string]string{derived("b"): recent, derived("c"): "deleted", derived("d"): "deleted"}, nil)
			sweep(remote.SweepOptions{UnusedTemplates: time.Nanosecond}, map[string]string{derived("b"): "deleted"}, nil)

			left := 0
			for tmpl, err := range user.Templates(t.Context()) {
				if err != nil {
					t.Fatal(err)
				}
				if left++; len(tmpl.Names) == 1 && strings.Contains(tmpl.Names[0], derived("b")) {
					t.Errorf("%v is left", tmpl)
				}
			}
			if want := len(strange) + 4; left != want {
				t.Errorf("%d templates are left, want the %d that are not derived", left, want)
			}
		})
	}
}

// Templates can be swept alone, and a dry run counts no sandbox as a user that the
// sweep would kill first.
func TestSweepKeepsSandboxes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCloud(t, mock.WithTemplates(mock.Template{Names: []string{derived("a")}}, mock.Template{Names: []string{derived("b")}}))
		dead, _ := c.proxy(remote.Config{OnHostLoss: remote.Pause})
		sb, err := remote.Hold(t.Context(), dead, remote.SandboxConfig{Template: derived("a"), OnHostLoss: remote.Pause, TimeoutSeconds: 300})
		if err != nil {
			t.Fatal(err)
		}
		sb.Drop()
		time.Sleep(time.Hour)
		sweeper, _ := c.proxy(remote.Config{})
		for _, test := range []struct {
			o    remote.SweepOptions
			want map[string]string
			kept bool
		}{
			{remote.SweepOptions{DryRun: true, KeepSandboxes: true}, map[string]string{derived("a"): "left: sandboxes use it", derived("b"): "unused"}, true},
			{remote.SweepOptions{DryRun: true}, map[string]string{derived("a"): "unused", derived("b"): "unused"}, false},
			{remote.SweepOptions{KeepSandboxes: true}, map[string]string{derived("a"): "left: sandboxes use it", derived("b"): "deleted"}, true},
			{remote.SweepOptions{}, map[string]string{derived("a"): "deleted"}, false},
		} {
			test.o.UnusedTemplates = time.Minute
			report, err := sweeper.Sweep(t.Context(), test.o)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, templateVerdicts(report)); diff != "" || test.kept != (len(report.Sandboxes) == 0) {
				t.Errorf("%+v: -want +got:\n%s\n%s", test.o, diff, report)
			}
		}
	})
	var none *remote.SweepReport // of a sweep that was refused
	if none.String() != "" || none.Killed() != 0 {
		t.Error("no report says something")
	}
}

// Sandboxes are swept where templates cannot be listed.
func TestSweepWithoutTemplates(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCloud(t, mock.WithFault(func(r mock.HTTPRequest) *mock.HTTPFault {
			if r.Path == "/v2/templates" {
				return &mock.HTTPFault{Status: http.StatusNotFound, Body: `{"code":404,"message":"no such route"}`}
			}
			return nil
		}))
		dead, _ := c.proxy(remote.Config{OnHostLoss: remote.Pause})
		sb, err := remote.Hold(t.Context(), dead, remote.SandboxConfig{Template: "base", OnHostLoss: remote.Pause, TimeoutSeconds: 300})
		if err != nil {
			t.Fatal(err)
		}
		sb.Drop()
		time.Sleep(time.Hour)
		sweeper, _ := c.proxy(remote.Config{})
		report, err := sweeper.Sweep(t.Context(), remote.SweepOptions{UnusedTemplates: time.Hour})
		if !errors.Is(err, e2b.ErrNotFound) || report.Killed() != 1 {
			t.Errorf("sweep: %v\n%s", err, report)
		}
		if _, err := sweeper.Sweep(t.Context(), remote.SweepOptions{UnusedTemplates: -1}); !errors.Is(err, remote.ErrInvalid) {
			t.Errorf("got %v, want ErrInvalid", err)
		}
	})
}
