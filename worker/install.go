package worker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/osiris-pipelines/remote/rpc"
	"github.com/osiris-pipelines/remote/secrets"
)

// installLimit is how long the packages of a template may take. Whoever builds
// it has a limit, too, but would not say what there was to wait for.
const installLimit = 25 * time.Minute

// installation is the command "install": what a run would install when it
// starts, before there is one.
type installation struct {
	cache        string // for environments, an absolute path
	python       string // empty means the usual one
	requirements string // a list in JSON
}

// compiler is a [Runtime] that does what is worth it only for many runs.
type compiler interface {
	// Compile makes the modules of what is installed ready to be imported.
	Compile(ctx context.Context) error
}

// install makes the environment that a run whose drivers in Python have these
// requirements will find in the same cache. What it does is printed line by
// line. That all is there already is a success, and makes none.
func (p Program) install(ctx context.Context, i installation, stdout io.Writer) (err error) {
	const name = "python"
	var requirements []string
	if err := json.Unmarshal([]byte(i.requirements), &requirements); err != nil {
		return fmt.Errorf("-requirements is no list of texts in JSON: %w", err)
	}
	var make NewRuntime
	if p.Drivers != nil {
		make = p.Drivers.runtime(name)
	}
	if make == nil {
		return errors.New("this worker program cannot run drivers in Python: add the runtime to its registry, by python.Register")
	}
	dir, err := os.MkdirTemp("", "osiris-install-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	// The runtime gets no redactor, which would hold lines back: these are
	// redacted one by one.
	out := &lines{w: stdout, redact: secrets.NewRedactor()}
	defer func() {
		if err != nil {
			err = errors.New(out.redact.String(err.Error()))
		}
	}()
	rt, err := make(RuntimeOptions{
		Dir: dir, CacheDir: i.cache, Program: i.python, Template: true,
		Env:   func() map[string]string { return nil },
		Event: func(_, event string, fields map[string]any) { out.event(event, fields) },
		Print: func(_, _, line string) { out.print(line) },
		Artifact: func(string) (io.WriteCloser, string, error) {
			return out, "the output of this command", nil
		},
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rt.Close()) }()
	if _, err := rt.Load(ctx, []rpc.DeclaredDriver{{Name: "install", Mode: string(Transform), Runtime: name, Requirements: requirements}}); err != nil {
		return err
	}
	check, err := rt.Check(ctx)
	if err != nil || len(check.Missing) == 0 {
		return err
	}
	if _, err := rt.Install(ctx, &rpc.InstallDeps{Runtime: name, TimeoutMS: installLimit.Milliseconds()}); err != nil {
		return err
	}
	// As a run will ask.
	if check, err = rt.Check(ctx); err != nil {
		return err
	}
	if len(check.Missing) > 0 {
		return fmt.Errorf("not there, although installed: %s", strings.Join(check.Missing, ", "))
	}
	if c, ok := rt.(compiler); ok {
		return c.Compile(ctx)
	}
	return nil
}

// lines writes whole lines, of whoever has some.
type lines struct {
	redact *secrets.Redactor

	mu   sync.Mutex
	w    io.Writer
	rest []byte // of a line that has not ended
}

// Write implements [io.Writer].
func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rest = append(l.rest, p...)
	end := bytes.LastIndexByte(l.rest, '\n') + 1
	_, err := l.w.Write(l.redact.Bytes(l.rest[:end]))
	l.rest = append(l.rest[:0], l.rest[end:]...)
	return len(p), err
}

// Close ends a line that was not.
func (l *lines) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.rest) == 0 {
		return nil
	}
	_, err := l.w.Write(append(l.redact.Bytes(l.rest), '\n'))
	l.rest = nil
	return err
}

func (l *lines) print(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, _ = fmt.Fprintf(l.w, "%s\n", l.redact.String(line))
}

// event prints what a run would report.
func (l *lines) event(name string, fields map[string]any) {
	switch name {
	case "dependency_check":
		l.print(fmt.Sprintf("packages: present %v, missing %v", fields["present"], fields["missing"]))
	case "dependency_installed":
		l.print(fmt.Sprintf("package %v (%v ms)", fields["package"], fields["duration_ms"]))
	case "dependency_install_complete":
		l.print(fmt.Sprintf("packages installed: %v (%v ms)", fields["installed"], fields["duration_ms"]))
	}
}
