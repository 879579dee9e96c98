// Package progress tells people in a terminal how a run goes.
package progress

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/osiris-pipelines/remote"
)

// Printer writes the interesting events of a run, a line each.
type Printer struct {
	w     io.Writer
	start time.Time
	err   error // of the last line
}

// New returns a printer that writes to w and counts time from now.
func New(w io.Writer) *Printer { return &Printer{w: w, start: time.Now()} }

// Event prints an event; it is meant for [remote.ExecutionContext.OnEvent]. It
// fails, and with it the run, only when nobody reads any more what is printed.
func (p *Printer) Event(_ context.Context, e remote.Event) error {
	var f struct {
		PipelineID string  `json:"pipeline_id"`
		SandboxID  string  `json:"sandbox_id"`
		Driver     string  `json:"driver"`
		Rows       int64   `json:"rows_processed"`
		DurationMS float64 `json:"duration_ms"`
		Error      string  `json:"error"`

		Missing   []string `json:"missing"`
		Package   string   `json:"package"`
		Installed []string `json:"installed"`

		Template string   `json:"template"`
		From     string   `json:"from"`
		CPU      int      `json:"cpu"`
		MemoryGB float64  `json:"memory_gb"`
		Packages []string `json:"packages"`
		Own      bool     `json:"own"`
		Derived  bool     `json:"derived"`
		Message  string   `json:"message"`
		For      string   `json:"for"`
	}
	// What the worker sends is not ours: a field of another type stays zero.
	_ = e.Decode(&f)
	switch e.Name {
	case "run_start":
		p.line("run %s", f.PipelineID)
	case "template_build_waiting":
		p.line("template %s: waiting for %s", f.Template, f.For)
	case "template_build_started":
		p.line("%s template %s from %s%s", building(f.Own), f.Template, f.From, parts(f.CPU, f.MemoryGB, f.Packages))
	case "template_build_progress":
		p.line("  %s", f.Message)
	case "template_build_complete":
		p.line("template %s is ready (%.0f ms)", f.Template, f.DurationMS)
	case "template_build_failed":
		p.line("template %s is not ready: %s", f.Template, f.Error)
	case "template_used":
		if f.Derived {
			p.line("the sandbox is made from template %s", f.Template)
		}
	case "sandbox_created":
		p.line("sandbox %s is up (%.1f ms)", f.SandboxID, f.DurationMS)
	case "worker_started":
		p.line("worker is up (%.1f ms)", f.DurationMS)
	case "dependency_check":
		if len(f.Missing) > 0 {
			p.line("missing: %s", strings.Join(f.Missing, ", "))
		}
	case "wheelhouse_used":
		p.line("packages are sent from the wheelhouse")
	case "dependency_installed":
		p.line("installed %s", f.Package)
	case "dependency_install_complete":
		p.line("%s installed (%.0f ms)", count(int64(len(f.Installed)), "package"), f.DurationMS)
	case "step_start":
		p.line("%s: started, %s", e.StepID, f.Driver)
	case "step_complete":
		p.line("%s: done, %s in %.1f ms", e.StepID, count(f.Rows, "row"), f.DurationMS)
	case "step_failed":
		p.line("%s: FAILED after %.1f ms: %s", e.StepID, f.DurationMS, f.Error)
	case "run_complete":
		p.line("run complete")
	case "run_error":
		p.line("run FAILED")
	case "collect_error":
		p.line("artifacts NOT collected: %s", f.Error)
	}
	if errors.Is(p.err, syscall.EPIPE) {
		return p.err
	}
	return nil
}

// building says whose build a template is.
func building(own bool) string {
	if own {
		return "building"
	}
	return "waiting for another's build of"
}

// parts says what a template has that is not its base's.
func parts(cpu int, memoryGB float64, packages []string) string {
	var b strings.Builder
	if cpu > 0 {
		fmt.Fprintf(&b, ", %s", count(int64(cpu), "core"))
	}
	if memoryGB > 0 {
		fmt.Fprintf(&b, ", %g GiB", memoryGB)
	}
	if len(packages) > 0 {
		fmt.Fprintf(&b, ", with %s", strings.Join(packages, ", "))
	}
	return b.String()
}

func (p *Printer) line(format string, args ...any) {
	_, p.err = fmt.Fprintf(p.w, "%8.3fs  %s\n", time.Since(p.start).Seconds(), Clean(shorten(fmt.Sprintf(format, args...))))
}

// Report prints a run's verdict, where its session is, and what it left there.
// Either of result and files may be nil.
func Report(w io.Writer, ec *remote.ExecutionContext, result *remote.ExecResult, files *remote.CollectedArtifacts) {
	if result == nil {
		return
	}
	verdict, succeeded := "FAILED", 0
	if result.Success {
		verdict = "succeeded"
	}
	for _, step := range result.StepResults {
		if step.Status == remote.StepSucceeded {
			succeeded++
		}
	}
	fmt.Fprintf(w, "\n%s: %d of %s in %.2f s\n", verdict, succeeded, count(int64(len(result.StepResults)), "step"), result.DurationSeconds)
	fmt.Fprintf(w, "session: %s\n", Clean(ec.LogsDir))
	receipt := result.Receipt
	if files != nil && files.Receipt != nil { // the later one
		receipt = files.Receipt
	}
	Receipt(w, receipt)
	if files == nil {
		return
	}
	fmt.Fprintf(w, "artifacts: %s\n", Clean(files.ArtifactsDir))
	for _, a := range files.Artifacts {
		fmt.Fprintf(w, "%12d bytes  %s\n", a.Size, Clean(a.Path))
	}
	for _, s := range files.Skipped {
		fmt.Fprintf(w, "%18s  %s: %s\n", "not brought home", Clean(s.Path), Clean(s.Reason))
	}
}

// Receipt prints what a run has taken. Nil prints nothing.
func Receipt(w io.Writer, r *remote.Receipt) {
	if r == nil {
		return
	}
	var phases []string
	for _, p := range []struct {
		name string
		took time.Duration
	}{
		{"prepare", r.Phases.Prepare}, {"build", r.Phases.Build}, {"create", r.Phases.Create}, {"upload", r.Phases.Upload}, {"worker", r.Phases.WorkerStart},
		{"packages", r.Phases.Dependencies}, {"steps", r.Phases.Steps}, {"tables", r.Phases.Transfer}, {"finish", r.Phases.Finish},
		{"idle", r.Phases.Idle}, {"collect", r.Phases.Collect}, {"kill", r.Phases.Kill},
	} {
		if p.took >= time.Millisecond {
			phases = append(phases, fmt.Sprintf("%s %.3f", p.name, p.took.Seconds()))
		}
	}
	fmt.Fprintf(w, "time: %.3f s (%s)\n", r.Wall.Seconds(), strings.Join(phases, ", "))
	fmt.Fprintf(w, "moved: %d bytes there, %d back\n", r.BytesSent, r.BytesReceived)
	if r.CPU > 0 || r.MemoryGB > 0 {
		fmt.Fprintf(w, "sandbox: %d vCPU, %g GiB for %.3f s, about $%.6f\n", r.CPU, r.MemoryGB, r.SandboxRan.Seconds(), r.CostUSD)
	}
	if o := r.Overhead; o != nil {
		fmt.Fprintf(w, "overhead: %.2f %% of the %.3f s after the worker was ready\n", 100*o.Ratio, o.Window.Seconds())
	}
}

// Error prints an error, each of its lines behind the program's name.
func Error(w io.Writer, program string, err error) {
	for line := range strings.Lines(err.Error()) {
		fmt.Fprintf(w, "%s: %s\n", program, Clean(strings.TrimSuffix(line, "\n")))
	}
}

// Clean returns text with everything escaped that a terminal might take for a
// command or hide: names, messages and errors may come from a sandbox.
func Clean(text string) string {
	text = strings.ToValidUTF8(text, "\uFFFD")
	if !strings.ContainsFunc(text, unsafe) {
		return text
	}
	var b strings.Builder
	for _, r := range text {
		if unsafe(r) {
			quoted := strconv.QuoteRune(r)
			b.WriteString(quoted[1 : len(quoted)-1])
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

func unsafe(r rune) bool { return !unicode.IsPrint(r) }

// shorten bounds a line: an error may quote a whole row.
func shorten(text string) string {
	const limit = 1000
	if len(text) <= limit {
		return text
	}
	return strings.ToValidUTF8(text[:limit], "") + "..."
}

func count(n int64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
