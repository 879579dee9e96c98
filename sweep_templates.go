package remote

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/osiris-pipelines/remote/e2b"
)

// SweptTemplate is a derived template that a sweep has judged.
type SweptTemplate struct {
	ID       string        `json:"template_id"`
	Name     string        `json:"name"`
	LastUsed time.Time     `json:"last_used"` // a sandbox was made from it, or it was built; by E2B's clock
	Age      time.Duration `json:"age"`       // since then, by the same
	Unused   bool          `json:"unused"`    // nobody needs it, and it is to be removed
	Reason   string        `json:"reason"`    // of that judgement
	Deleted  bool          `json:"deleted"`   // and it was
	Err      error         `json:"-"`         // why it was not
}

// abandonedBuild is how long a build that was asked for may wait for its host to
// start it. The address for a layer's upload is good for half an hour.
const abandonedBuild = 24 * time.Hour

// sweepTemplates judges the account's derived templates and deletes those that
// nobody has used for a time, but for a dry run.
func (a *E2BTransparentProxy) sweepTemplates(ctx context.Context, o SweepOptions, report *SweepReport) error {
	for t, err := range a.client.Templates(ctx) {
		if err != nil { // what was listed is judged, and nothing deleted
			return fmt.Errorf("remote: sweep: %w", err)
		}
		if name, ours := derivedAlias(t.Names); ours {
			report.Templates = append(report.Templates, judgeTemplate(t, name, o.UnusedTemplates))
		}
	}
	if o.DryRun {
		return a.spareUsed(ctx, report)
	}
	return a.deleteUnused(ctx, report)
}

// spareUsed finds out, without a try to delete them, which templates sandboxes use:
// those that the sweep would not kill first.
func (a *E2BTransparentProxy) spareUsed(ctx context.Context, report *SweepReport) error {
	if !slices.ContainsFunc(report.Templates, func(t SweptTemplate) bool { return t.Unused }) {
		return nil
	}
	used := make(map[string]bool) // IDs of templates
	for info, err := range a.client.List(ctx, e2b.ListOptions{}) {
		if err != nil {
			return fmt.Errorf("remote: sweep: %w", err)
		}
		orphan := func(s SweptSandbox) bool { return s.ID == info.ID && s.Orphan }
		if !slices.ContainsFunc(report.Sandboxes, orphan) {
			used[info.TemplateID] = true
		}
	}
	for i := range report.Templates {
		if t := &report.Templates[i]; t.Unused && used[t.ID] {
			t.Unused, t.Reason = false, templateUsed
		}
	}
	return nil
}

const templateUsed = "sandboxes use it"

// derivedAlias returns the name of a template that this library has made: it has
// no others, but for the same in the account's namespace.
func derivedAlias(names []string) (name string, ours bool) {
	for _, full := range names {
		_, alias, namespaced := strings.Cut(full, "/")
		if !namespaced {
			alias = full
		}
		if !derivedName.MatchString(alias) || name != "" && name != alias {
			return "", false
		}
		name = alias
	}
	return name, name != ""
}

// judgeTemplate decides about a derived template.
func judgeTemplate(t e2b.Template, name string, unused time.Duration) SweptTemplate {
	s := SweptTemplate{ID: t.ID, Name: name}
	for _, at := range []time.Time{t.LastSpawnedAt, t.UpdatedAt, t.CreatedAt} {
		if at.After(s.LastUsed) {
			s.LastUsed = at
		}
	}
	known := !t.SeenAt.IsZero() && !s.LastUsed.IsZero()
	if known {
		s.Age = max(t.SeenAt.Sub(s.LastUsed), 0)
	}
	switch {
	case t.BuildStatus == e2b.BuildRunning:
		s.Reason = "it is being built"
	case !known:
		s.Reason = "E2B does not say when it was used"
	case t.BuildStatus == e2b.BuildWaiting && s.Age < abandonedBuild:
		s.Reason = "its build is about to be started"
	case s.Age < unused:
		s.Reason = fmt.Sprintf("it was used in the last %s", unused)
	case t.BuildStatus == e2b.BuildWaiting:
		s.Unused, s.Reason = true, "its build was asked for and never started"
	default:
		s.Unused, s.Reason = true, fmt.Sprintf("nobody has used it for %s", s.Age.Round(time.Second))
	}
	return s
}

// deleteUnused deletes what was judged to be unused. E2B refuses to delete what
// sandboxes use, running or paused.
func (a *E2BTransparentProxy) deleteUnused(ctx context.Context, report *SweepReport) error {
	var group errgroup.Group
	group.SetLimit(sweepAtOnce)
	for i := range report.Templates {
		t := &report.Templates[i]
		if !t.Unused {
			continue
		}
		group.Go(func() error {
			switch err := a.client.DeleteTemplate(ctx, t.ID); {
			case err == nil:
				t.Deleted = true
			case errors.Is(err, e2b.ErrInvalid):
				t.Unused, t.Reason = false, templateUsed
			default:
				t.Err = err
			}
			return nil
		})
	}
	_ = group.Wait() // the errors are in the report
	var errs []error
	for _, t := range report.Templates {
		if t.Err != nil {
			errs = append(errs, fmt.Errorf("remote: sweep: template %s: %w", t.Name, t.Err))
		}
	}
	return errors.Join(errs...)
}

// line is for people.
func (t *SweptTemplate) line() string {
	verdict := "left"
	switch {
	case t.Deleted:
		verdict = "deleted"
	case t.Err != nil:
		verdict = "not deleted (" + t.Err.Error() + ")"
	case t.Unused:
		verdict = "unused"
	}
	return fmt.Sprintf("%s (%s, used %s ago): %s: %s", t.Name, t.ID, t.Age.Round(time.Second), verdict, t.Reason)
}
