package mock

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/osiris-pipelines/remote/mock/internal/envd"
)

const (
	// stepTimeout bounds a step of a build, as E2B does.
	stepTimeout = time.Hour
	// readyInterval is how often a ready command is tried, within readyTimeout.
	readyInterval = 50 * time.Millisecond
	readyTimeout  = time.Minute
	// startGrace is how long a start command without a ready command may take to
	// fail.
	startGrace = 200 * time.Millisecond
)

// construction is a build at work.
type construction struct {
	server   *Server
	template string
	build    *build
	from     *build // nil means an empty machine
	request  *startRequest

	*workshop
	setup setup
}

// stepError says in which step a build failed.
type stepError struct {
	step string
	err  error
}

func (e *stepError) Error() string { return e.err.Error() }
func (e *stepError) Unwrap() error { return e.err }

// beginBuildLocked starts a build in the background.
func (s *Server) beginBuildLocked(t *template, b, from *build, req *startRequest) {
	if s.closed {
		b.cancelLocked(s.now())
		return
	}
	ctx, cancel := context.WithCancel(s.ctx)
	b.status, b.updatedAt, b.cancel = buildRunning, s.now(), cancel
	if from != nil {
		from.holds++
	}
	c := &construction{server: s, template: t.id, build: b, from: from, request: req}
	s.work.Go(func() {
		defer cancel()
		started := s.now()
		c.say("info", "", fmt.Sprintf("Building template %s/%s", c.template, b.id))
		image, err := c.run(ctx)
		if from != nil {
			s.release(from)
		}
		c.finish(image, err, s.now().Sub(started))
	})
}

// finish makes known how a build has ended, unless it was cancelled: that is
// known.
func (c *construction) finish(image envd.Machine, err error, took time.Duration) {
	reason, step := "", ""
	switch at := (*stepError)(nil); {
	case err == nil:
		c.say("info", "", "Build finished, took "+took.Truncate(time.Second).String())
	case errors.As(err, &at):
		reason, step = at.Error(), at.step
	case errors.Is(err, context.Canceled):
		reason = cancelled
	default:
		reason = fmt.Sprintf("the mock server failed: %v", err)
	}
	if err != nil {
		c.say("error", "", "Build failed: "+reason)
	}
	if !c.conclude(image, err, reason, step) && image != nil {
		c.server.control.closeImages(image)
	}
}

// conclude reports whether the build was not cancelled, and the image is its
// own now.
func (c *construction) conclude(image envd.Machine, err error, reason, step string) (kept bool) {
	s, b := c.server, c.build
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		b.failLocked(reason, &step, s.now())
	}
	if b.status != buildRunning {
		return false
	}
	b.image, b.setup = image, c.setup
	b.finishLocked(buildReady, s.now())
	return true
}

func (c *construction) say(level, step, message string) {
	c.build.log.add(c.server.now(), level, step, message)
}

// run does all steps, and returns the image. It leaves nothing else behind.
func (c *construction) run(ctx context.Context) (image envd.Machine, err error) {
	base := c.request.FromImage
	source, from := "", envd.Machine(nil)
	if base != nil {
		source = *base
	} else {
		source = "TEMPLATE " + *c.request.FromTemplate
		from, c.setup = c.from.image, c.from.setup
	}
	c.say("info", "base", "[base] FROM "+source)
	if base != nil {
		c.say("warn", "base", "[base] the mock server pulls no images: the files are those of its own sandboxes")
	}
	if c.workshop, err = c.server.back.workshop(from); err != nil {
		return nil, &stepError{"base", err}
	}
	defer func() {
		if image == nil && c.workshop != nil {
			err = errors.Join(err, c.workshop.close())
		}
	}()
	c.say("info", "base", "[base] DEFAULT USER user")
	c.setup.user = "user"
	for k, step := range c.request.Steps {
		if err := c.step(ctx, k+1, step); err != nil {
			return nil, failedStep(ctx, strconv.Itoa(k+1), err)
		}
	}
	c.say("info", "finalize", "[finalize] Finalizing template build")
	if err := c.finalize(ctx); err != nil {
		return nil, failedStep(ctx, "finalize", err)
	}
	c.outlets.close()
	return c.machine, nil
}

// failedStep is why a step failed, unless the build was cancelled.
func failedStep(ctx context.Context, step string, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return &stepError{step, err}
}

// restart replaces the machine by one with the same files and no processes.
func (c *construction) restart() error {
	old := c.workshop
	if err := old.machine.Freeze(true); err != nil {
		return err
	}
	c.workshop = nil
	next, err := c.server.back.workshop(old.machine)
	if err = errors.Join(err, old.close()); err != nil {
		if next != nil {
			err = errors.Join(err, next.close())
		}
		return err
	}
	c.workshop = next
	return nil
}

// step does one step.
func (c *construction) step(ctx context.Context, number int, step buildStep) error {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	kind := strings.ToUpper(*step.Type)
	prefix, at := fmt.Sprintf("builder %d/%d", number, len(c.request.Steps)), strconv.Itoa(number)
	c.say("info", at, fmt.Sprintf("[%s] %s %s", prefix, kind, strings.Join(step.Args, " ")))
	say := func(stream, line string) { c.say("info", at, fmt.Sprintf("[%s] [%s]: %s", prefix, stream, line)) }
	switch kind {
	case "RUN":
		return c.runStep(ctx, step.Args, say)
	case "COPY", "ADD":
		return c.copyStep(ctx, kind, step)
	case "WORKDIR":
		return c.workdirStep(step.Args)
	case "USER":
		return c.userStep(step.Args)
	case "ENV", "ARG":
		return c.envStep(kind, step.Args)
	}
	return fmt.Errorf("failed to get command for step %s: command type %s is not implemented", *step.Type, kind)
}

func (c *construction) runStep(ctx context.Context, args []string, say func(stream, line string)) error {
	if len(args) < 1 {
		return errors.New("RUN requires command argument")
	}
	user := c.setup.user
	if len(args) > 1 {
		user = args[1]
	}
	cmd, err := c.command(args[0], user, c.setup)
	if err == nil {
		err = c.workshop.run(ctx, cmd, say)
	}
	if err != nil {
		return fmt.Errorf("failed to run command '%s': %w", args[0], err)
	}
	return nil
}

func (c *construction) workdirStep(args []string) error {
	if len(args) < 1 {
		return errors.New("WORKDIR requires a path argument")
	}
	dir := args[0]
	if !path.IsAbs(dir) {
		dir = path.Join("/", c.setup.workdir, dir)
	}
	dir = path.Clean(dir)
	owner, err := c.machine.User(c.setup.user)
	if err == nil {
		_, err = c.makeDirs(dir, owner)
	}
	if err != nil {
		return fmt.Errorf("failed to create workdir: %w", err)
	}
	c.setup.workdir = dir
	return nil
}

func (c *construction) userStep(args []string) error {
	if len(args) < 1 {
		return errors.New("USER requires a username argument")
	}
	if _, err := c.machine.User(args[0]); err != nil || args[0] == "" {
		return fmt.Errorf("failed to create user: the mock server's machines have root and user, not %q", args[0])
	}
	c.setup.user = args[0]
	return nil
}

func (c *construction) envStep(kind string, args []string) error {
	switch {
	case len(args) == 0:
		return fmt.Errorf("%s does not support passing no arguments", kind)
	case len(args)%2 != 0:
		return fmt.Errorf("%s requires both a key and value arguments", kind)
	}
	// A value may name the variables of root.
	root, err := c.command("", "root", setup{})
	if err != nil {
		return err
	}
	for k := 0; k < len(args); k += 2 {
		c.setup = c.setup.with(args[k], os.Expand(args[k+1], func(name string) string {
			for _, v := range root.Env {
				if value, ok := strings.CutPrefix(v, name+"="); ok {
					return value
				}
			}
			return ""
		}))
	}
	return nil
}

// finalize completes the files and sees that the start command works. What ran
// before it, and in it, is gone afterwards.
func (c *construction) finalize(ctx context.Context) error {
	if err := c.restart(); err != nil {
		return err
	}
	// E2B has /tmp in memory, where it does not outlive a machine.
	entries, err := c.machine.ReadDir("/tmp")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		if err := c.machine.RemoveAll(path.Join("/tmp", e.Name())); err != nil {
			return err
		}
	}
	if err := c.giveHome(ctx); err != nil {
		return fmt.Errorf("configuration script failed: %w", err)
	}
	if c.request.StartCmd != "" || c.request.ReadyCmd != "" {
		c.setup.start = &startCommand{command: c.request.StartCmd, ready: c.request.ReadyCmd, within: c.setup.still()}
	}
	if c.setup.start == nil {
		return nil
	}
	say := func(level, message string) { c.say(level, "finalize", message) }
	run, err := c.begin(ctx, c.setup.start, say)
	if err != nil {
		return err
	}
	run.stop()
	return c.restart()
}

// giveHome makes the files in the user's home the user's.
func (c *construction) giveHome(ctx context.Context) error {
	m, ok := c.machine.(envd.Administrator)
	if !ok {
		return nil
	}
	u, err := c.machine.User("user")
	if err != nil {
		return err
	}
	var give func(name string) error
	give = func(name string) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := m.Chown(name, u); err != nil {
			return err
		}
		info, err := c.machine.Lstat(name)
		if err != nil || !info.IsDir() {
			return err
		}
		entries, err := c.machine.ReadDir(name)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := give(path.Join(name, e.Name())); err != nil {
				return err
			}
		}
		return nil
	}
	return give(u.Home)
}

// started is a start command that runs.
type started struct {
	cancel context.CancelFunc
	work   sync.WaitGroup
	ended  chan struct{}
	err    error // once ended is closed
}

// stop ends it, if it has not ended, and waits.
func (s *started) stop() {
	if s == nil {
		return
	}
	s.cancel()
	s.work.Wait()
}

// begin runs a start command, and returns when the ready command says that it
// works. It goes on until stop, or the end of the machine.
func (w *workshop) begin(ctx context.Context, start *startCommand, say func(level, message string)) (*started, error) {
	s := &started{ended: make(chan struct{})}
	background, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s.cancel = cancel
	if start.command == "" {
		close(s.ended)
	} else {
		say("info", "Running start command: "+start.command)
		cmd, err := w.command(start.command, start.within.user, start.within)
		if err != nil {
			cancel()
			return nil, fmt.Errorf("start command failed: %w", err)
		}
		s.work.Go(func() {
			s.err = w.run(background, cmd, func(stream, line string) {
				say("info", fmt.Sprintf("[start] [%s]: %s", stream, line))
			})
			close(s.ended)
		})
	}
	if err := w.awaitReady(ctx, start, s, say); err != nil {
		s.stop()
		return nil, err
	}
	return s, nil
}

// awaitReady tries the ready command until it succeeds. A start command that
// fails is one that is not ready; one that has succeeded is.
func (w *workshop) awaitReady(ctx context.Context, start *startCommand, s *started, say func(level, message string)) error {
	if start.ready == "" {
		if start.command == "" {
			return nil
		}
		timer := time.NewTimer(startGrace)
		defer timer.Stop()
		select {
		case <-timer.C:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-s.ended:
			if s.err != nil {
				return fmt.Errorf("start command failed: error running start command: %w", s.err)
			}
			return nil
		}
	}
	ended := s.ended
	if start.command == "" {
		ended = nil // there is nothing that could end
	}
	say("info", "Waiting for template to be ready: "+start.ready)
	limited, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	for {
		cmd, err := w.command(start.ready, start.within.user, start.within)
		if err != nil {
			return fmt.Errorf("ready command failed: %w", err)
		}
		err = w.run(limited, cmd, func(stream, line string) {
			say("debug", fmt.Sprintf("[ready] [%s]: %s", stream, line))
		})
		if err == nil {
			say("info", "Template is ready")
			return nil
		}
		say("debug", fmt.Sprintf("Template is not ready: %v", err))
		select {
		case <-limited.Done():
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("ready command failed: ready command timed out after %s", readyTimeout)
		case <-ended:
			if s.err != nil {
				return fmt.Errorf("start command failed: error running start command: %w", s.err)
			}
			ended = nil
		case <-time.After(readyInterval):
		}
	}
}
