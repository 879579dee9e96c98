package remote

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/osiris-pipelines/remote/e2b"
)

// SweepOptions says what [E2BTransparentProxy.Sweep] does.
type SweepOptions struct {
	DryRun bool // decide and report, and kill nothing

	// OlderThan leaves alone what was started, or paused, less than this ago.
	OlderThan time.Duration

	// UnusedTemplates has the account's derived templates removed, too, that
	// nobody used for so long: no sandbox was made from them, and they were not
	// built. Zero leaves all of them alone. A run that needs one again builds it
	// again.
	UnusedTemplates time.Duration

	// KeepSandboxes leaves all sandboxes alone, for a sweep of templates.
	KeepSandboxes bool
}

// SweepReport says what a sweep found and did.
type SweepReport struct {
	Sandboxes []SweptSandbox  `json:"sandboxes"`           // the account's that are this library's, the newest first
	Templates []SweptTemplate `json:"templates,omitempty"` // the account's that this library has derived, the newest first
}

// Killed counts the sandboxes that were killed.
func (r *SweepReport) Killed() int {
	n := 0
	if r == nil { // of a sweep that was refused
		return n
	}
	for _, s := range r.Sandboxes {
		if s.Killed {
			n++
		}
	}
	return n
}

// SweptSandbox is a sandbox that a sweep has judged.
type SweptSandbox struct {
	ID        string        `json:"sandbox_id"`
	SessionID string        `json:"session_id"` // of its run
	State     string        `json:"state"`      // "running" or "paused"
	Age       time.Duration `json:"age"`        // since it was started or paused, by E2B's clock; zero when E2B does not tell
	Orphan    bool          `json:"orphan"`     // it has no owner, and is to be killed
	Reason    string        `json:"reason"`     // of that judgement
	Killed    bool          `json:"killed"`     // and it was
	Err       error         `json:"-"`          // why it was not
}

const (
	// secondLook is when, at most, a sandbox whose lease was not renewed is
	// looked at again: an owner that lives has tried by then.
	secondLook = 30 * time.Second

	secondLookLeast = 5 * time.Second

	// A renewal may be late by this part of the lease.
	lateRenewal = 12

	sweepAtOnce = 8 // kills
)

// Sweep kills the sandboxes of this library on the account that have no owner
// any more: those of hosts that died. It finds them by their metadata, running
// and paused, and judges each by E2B's times alone:
//
//   - One that this adapter has made is left alone.
//   - A running one whose lease was renewed lately has an owner that lives, in
//     this process or another; so has one that waits for Collect, for the five
//     minutes it is given. Where there is doubt Sweep looks again, up to half a
//     minute later, and one whose end has moved meanwhile is left alone.
//   - A running one whose lease was not renewed is an orphan. It would end by
//     itself when the lease is over.
//   - A paused one is an orphan: it was paused when its lease was over
//     (Config.OnHostLoss), or by somebody else. It would stay for ever. Use
//     OlderThan to leave time to those who may come back for it.
//
// With SweepOptions.UnusedTemplates it also deletes templates, see
// Config.AllowTemplateBuild: those with a name that this library gives, and no
// other, whether this account's runs here or elsewhere have made them. One that
// is being built, or has sandboxes, running or paused, is left.
//
// The report is there also beside an error, which is that of a list, or says
// what could not be removed; a failure with sandboxes keeps no templates from
// being swept, nor the other way round. Sweep fails with [ErrUnsupported] on an
// adapter with Config.OpenSandbox. Killing needs no permission of the owner: to
// sweep an account that others use, too, is to rely on their leases.
func (a *E2BTransparentProxy) Sweep(ctx context.Context, o SweepOptions) (*SweepReport, error) {
	if a.client == nil {
		return nil, fmt.Errorf("remote: sweep: %w: the adapter's sandboxes are not E2B's (Config.OpenSandbox)", ErrUnsupported)
	}
	if o.OlderThan < 0 {
		return nil, fmt.Errorf("remote: sweep: %w: SweepOptions.OlderThan is %s", ErrInvalid, o.OlderThan)
	}
	if o.UnusedTemplates < 0 {
		return nil, fmt.Errorf("remote: sweep: %w: SweepOptions.UnusedTemplates is %s", ErrInvalid, o.UnusedTemplates)
	}
	report := &SweepReport{Sandboxes: []SweptSandbox{}}
	var err error
	if !o.KeepSandboxes {
		err = a.sweepSandboxes(ctx, o, report)
	}
	if o.UnusedTemplates > 0 { // after the sandboxes, which may use them
		if templatesErr := a.sweepTemplates(ctx, o, report); templatesErr != nil {
			err = errors.Join(err, templatesErr)
		}
	}
	return report, err
}

// sweepSandboxes judges this library's sandboxes and kills the orphans, but for
// a dry run.
func (a *E2BTransparentProxy) sweepSandboxes(ctx context.Context, o SweepOptions, report *SweepReport) error {
	found, err := a.findSandboxes(ctx)
	if err != nil {
		return fmt.Errorf("remote: sweep: %w", err)
	}
	report.Sandboxes = make([]SweptSandbox, len(found))
	doubtful := make(map[string]int)
	wait := time.Duration(0)
	for i, info := range found {
		report.Sandboxes[i] = judge(info, a.owner, o.OlderThan)
		if !report.Sandboxes[i].Orphan {
			continue
		}
		doubtful[info.ID] = i // also one that is paused: meanwhile it may be taken over
		if info.State == e2b.Running {
			wait = max(wait, untilSecondLook(info))
		}
	}
	if wait > 0 {
		if err := a.lookAgain(ctx, wait, found, doubtful, report); err != nil {
			return fmt.Errorf("remote: sweep: %w", err)
		}
	}
	if o.DryRun {
		return nil
	}
	return a.killOrphans(ctx, report)
}

// findSandboxes lists this library's sandboxes.
func (a *E2BTransparentProxy) findSandboxes(ctx context.Context) ([]e2b.SandboxInfo, error) {
	var found []e2b.SandboxInfo
	only := map[string]string{libraryKey: libraryMark}
	for info, err := range a.client.List(ctx, e2b.ListOptions{Metadata: only}) {
		if err != nil {
			return nil, err
		}
		// A server that does not know the filter would name all there are.
		if info.Metadata[libraryKey] == libraryMark {
			found = append(found, info)
		}
	}
	return found, nil
}

// judge decides about a sandbox by one look at it.
func judge(info e2b.SandboxInfo, owner string, olderThan time.Duration) SweptSandbox {
	s := SweptSandbox{ID: info.ID, SessionID: info.Metadata[sessionKey], State: string(info.State)}
	since := info.StartedAt
	if info.State == e2b.Paused {
		since = info.EndAt
	}
	if !info.SeenAt.IsZero() && !since.IsZero() {
		s.Age = max(info.SeenAt.Sub(since), 0)
	}
	life, known := leaseOf(info)
	left := info.EndAt.Sub(info.SeenAt)
	switch {
	case info.Metadata[ownerKey] == owner:
		s.Reason = "it is this adapter's own"
	case s.Age < olderThan:
		s.Reason = fmt.Sprintf("it is not older than %s", olderThan)
	case info.State == e2b.Paused:
		s.Orphan, s.Reason = true, "it is paused, so nobody uses it"
	case info.State != e2b.Running:
		s.Reason = "it is in a state that is not known here"
	case !known:
		s.Reason = "its metadata does not say how long its lease is"
	case info.SeenAt.IsZero():
		s.Orphan, s.Reason = true, "its end does not move"
	case left >= life-life/renewAfter-life/lateRenewal:
		s.Reason = fmt.Sprintf("its lease of %s was renewed lately, and has %s left", life, left.Round(time.Second))
	case life <= collectLease && atItsLimit(info):
		s.Reason = "its run's time is over and it may be being collected; its end is as late as it may be"
	default:
		s.Orphan = true
		s.Reason = fmt.Sprintf("its lease of %s was not renewed, and has %s left", life, max(left, 0).Round(time.Second))
	}
	return s
}

// leaseOf is how long a renewal of a sandbox lasts, as its owner said.
func leaseOf(info e2b.SandboxInfo) (life time.Duration, known bool) {
	seconds, err := strconv.Atoi(info.Metadata[leaseKey])
	life = time.Duration(seconds) * time.Second
	return life, err == nil && seconds > 0 && seconds <= int(maxLease/time.Second)
}

// atItsLimit reports whether a sandbox has all the time that its owner made
// sure of. The account may allow no more, so that its end cannot move.
func atItsLimit(info e2b.SandboxInfo) bool {
	const tolerance = 2 * time.Second
	seconds, err := strconv.Atoi(info.Metadata[timeoutKey])
	if err != nil || seconds < 0 || seconds > int(maxLease/time.Second) {
		return false
	}
	promised := time.Duration(seconds)*time.Second + collectLease
	return info.EndAt.Sub(info.StartedAt) >= promised-tolerance
}

// untilSecondLook is how long an owner that lives may take to show it.
func untilSecondLook(info e2b.SandboxInfo) time.Duration {
	life, _ := leaseOf(info)
	if info.SeenAt.IsZero() { // it is not known when it was renewed
		return life/renewAfter + life/lateRenewal
	}
	return min(max(life/lateRenewal, secondLookLeast), secondLook)
}

// lookAgain looks at doubtful sandboxes after a wait, and takes back the
// judgement of those that were renewed.
func (a *E2BTransparentProxy) lookAgain(ctx context.Context, within time.Duration, first []e2b.SandboxInfo, doubtful map[string]int, report *SweepReport) error {
	undecided := func(reason string) {
		for _, i := range doubtful {
			report.Sandboxes[i].Orphan, report.Sandboxes[i].Reason = false, reason
		}
	}
	if err := wait(ctx, within); err != nil {
		undecided("there was no time to look again")
		return err
	}
	again, err := a.findSandboxes(ctx)
	if err != nil {
		undecided("it could not be looked at again")
		return err
	}
	now := make(map[string]e2b.SandboxInfo, len(again))
	for _, info := range again {
		now[info.ID] = info
	}
	for id, i := range doubtful {
		s := &report.Sandboxes[i]
		switch info, ok := now[id]; {
		case !ok:
			s.Orphan, s.Reason = false, "it has ended meanwhile"
		case info.State != first[i].State && info.State == e2b.Running:
			s.Orphan, s.Reason = false, "it was resumed meanwhile"
		case info.State != first[i].State:
			s.Orphan, s.Reason = false, "it was paused meanwhile"
		case !info.EndAt.Equal(first[i].EndAt), !info.StartedAt.Equal(first[i].StartedAt):
			s.Orphan, s.Reason = false, "its lease is being renewed"
		}
	}
	return nil
}

// killOrphans kills what was judged to be without an owner.
func (a *E2BTransparentProxy) killOrphans(ctx context.Context, report *SweepReport) error {
	var group errgroup.Group
	group.SetLimit(sweepAtOnce)
	for i := range report.Sandboxes {
		s := &report.Sandboxes[i]
		if !s.Orphan {
			continue
		}
		group.Go(func() error {
			s.Err = a.client.Kill(ctx, s.ID)
			s.Killed = s.Err == nil
			return nil
		})
	}
	_ = group.Wait() // the errors are in the report
	var errs []error
	for _, s := range report.Sandboxes {
		if s.Err != nil {
			errs = append(errs, fmt.Errorf("remote: sweep: %s: %w", s.ID, s.Err))
		}
	}
	return errors.Join(errs...)
}

// String is a line for each sandbox and template.
func (r *SweepReport) String() string {
	if r == nil {
		return ""
	}
	var b strings.Builder
	for _, s := range r.Sandboxes {
		verdict := "left"
		switch {
		case s.Killed:
			verdict = "killed"
		case s.Err != nil:
			verdict = "not killed (" + s.Err.Error() + ")"
		case s.Orphan:
			verdict = "orphan"
		}
		fmt.Fprintf(&b, "%s (%s, %s, %s old): %s: %s\n", s.ID, s.SessionID, s.State, s.Age.Round(time.Second), verdict, s.Reason)
	}
	for i := range r.Templates {
		fmt.Fprintln(&b, r.Templates[i].line())
	}
	return b.String()
}
