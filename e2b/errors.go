package e2b

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// What an error of this package is about. Test for them with errors.Is.
var (
	ErrAuthentication = errors.New("authentication failed") // the key, or a sandbox's token
	ErrForbidden      = errors.New("not allowed")           // the account may not do this
	ErrQuota          = errors.New("quota exceeded")        // waiting does not help: something must end first
	ErrRateLimit      = errors.New("rate limit")            // waiting helps; see APIError.RetryAfter
	ErrNotFound       = errors.New("not found")             // a template, snapshot, file, or process
	ErrTimeout        = errors.New("timed out")             // it may have happened all the same
	ErrTemplate       = errors.New("template cannot be used")
	ErrSandboxGone    = errors.New("sandbox is gone") // killed, expired, paused, or never there
	ErrPortClosed     = errors.New("port is closed")  // the sandbox runs, but nothing listens there
	ErrDiskFull       = errors.New("disk is full")    // the sandbox's
	ErrCapacity       = errors.New("no capacity")     // E2B has no room now; waiting helps
	ErrConflict       = errors.New("wrong state")     // paused, being paused, already there
	ErrInvalid        = errors.New("invalid argument")
	ErrUnsupported    = errors.New("not supported")
)

// APIError is an answer that says no. It matches the sentinel error of what it
// is about.
type APIError struct {
	Op         string        // what was being done, as "create sandbox"
	Method     string        // of the request
	Path       string        // of the request, without its query
	Status     int           // HTTP status; zero where the answer was a Connect error
	Code       string        // E2B's error_code, or the Connect code; may be empty
	Message    string        // E2B's own words
	RetryAfter time.Duration // how long to wait before it may go through; zero when the answer does not say

	about  error  // the sentinel, may be nil
	fix    string // what the caller can do
	object bool   // it came as E2B's JSON, so from its service and not from what stands in front
}

func (e *APIError) Error() string {
	var b strings.Builder
	add := func(before, text string) {
		if text == "" {
			return
		}
		if b.Len() > 0 {
			b.WriteString(before)
		}
		b.WriteString(text)
	}
	add("", e.Op)
	if e.about != nil {
		add(": ", e.about.Error())
	}
	switch {
	case e.Status != 0:
		add(": ", strings.TrimSpace(fmt.Sprintf("%d %s", e.Status, http.StatusText(e.Status))))
	case e.about == nil: // which says the same as the code
		add(": ", e.Code)
	}
	add(": ", e.Message)
	add("; ", e.fix)
	return b.String()
}

// Unwrap returns the sentinel.
func (e *APIError) Unwrap() error { return e.about }

// QuotaExceededError is a sandbox that could not be made because the account
// has as many as it may have. It matches [ErrQuota].
type QuotaExceededError struct{ Err error }

func (e *QuotaExceededError) Error() string { return describe("E2B quota exceeded", e.Err) }
func (e *QuotaExceededError) Unwrap() error { return e.Err }

// Is reports whether target is [ErrQuota].
func (e *QuotaExceededError) Is(target error) bool { return target == ErrQuota }

// TimeoutError is a sandbox that was not there in time. It matches
// [ErrTimeout].
type TimeoutError struct{ Err error }

func (e *TimeoutError) Error() string { return describe("Sandbox creation timeout", e.Err) }
func (e *TimeoutError) Unwrap() error { return e.Err }

// Is reports whether target is [ErrTimeout].
func (e *TimeoutError) Is(target error) bool { return target == ErrTimeout }

// Timeout reports that it is a time-out, as net.Error does.
func (e *TimeoutError) Timeout() bool { return true }

// SandboxError is a sandbox that could not be made, for a reason that is
// neither quota nor time. Its Err says why.
type SandboxError struct{ Err error }

func (e *SandboxError) Error() string { return describe("Failed to create sandbox", e.Err) }
func (e *SandboxError) Unwrap() error { return e.Err }

func describe(what string, err error) string {
	if err == nil {
		return what
	}
	return what + ": " + strings.TrimPrefix(err.Error(), "create sandbox: ") // which it says already
}
