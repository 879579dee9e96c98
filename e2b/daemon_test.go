package e2b

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/osiris-pipelines/remote/internal/envdpb"
)

// sandboxAt returns a sandbox whose daemon is at a URL.
func sandboxAt(t *testing.T, url string) *Sandbox {
	t.Helper()
	c, err := NewClient(Config{APIKey: "e2b_0123", SandboxURL: url, Retries: 2})
	if err != nil {
		t.Fatal(err)
	}
	s := newSandbox(c, sandboxAnswer{SandboxID: "itest", EnvdVersion: "0.6.13", EnvdAccessToken: "token"})
	t.Cleanup(func() {
		s.cancel(ErrSandboxGone)
		s.tasks.wait()
		c.Close()
	})
	return s
}

// sandboxOf returns a sandbox with a daemon of the test's.
func sandboxOf(t *testing.T, daemon http.Handler) *Sandbox {
	t.Helper()
	server := httptest.NewServer(daemon)
	t.Cleanup(func() { server.CloseClientConnections(); server.Close() })
	return sandboxAt(t, server.URL)
}

// sandboxInMemory is sandboxOf for a test on a fake clock.
func sandboxInMemory(t *testing.T, daemon http.Handler) *Sandbox {
	t.Helper()
	c := newTestClient(t, serve(t, daemon), func(cfg *Config) { cfg.SandboxURL = "http://sandbox.test" })
	s := newSandbox(c, sandboxAnswer{SandboxID: "itest", EnvdVersion: "0.6.13", EnvdAccessToken: "token"})
	t.Cleanup(func() {
		s.cancel(ErrSandboxGone)
		s.tasks.wait()
	})
	return s
}

// realSandbox returns a sandbox with a real daemon.
func realSandbox(t *testing.T) *Sandbox {
	t.Helper()
	url := os.Getenv("E2B_ENVD_URL")
	if url == "" {
		t.Skip("E2B_ENVD_URL does not name a daemon of E2B to test against")
	}
	return sandboxAt(t, url)
}

// diskDaemon serves the files of this computer, as the real one does where it
// is asked for what the tests ask. before, if not nil, can interfere with a
// request, and reports whether it has done so.
func diskDaemon(before func(http.ResponseWriter, *http.Request) bool) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /files", func(w http.ResponseWriter, r *http.Request) {
		name := r.URL.Query().Get("path")
		f, err := os.Open(name)
		if err != nil {
			w.WriteHeader(http.StatusNotFound)
			io.WriteString(w, `{"code":404,"message":"path does not exist"}`)
			return
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			panic(err)
		}
		http.ServeContent(w, r, name, info.ModTime(), f)
	})
	mux.HandleFunc("POST /files", serveUpload)
	handle(mux, envdpb.FilesystemStat, func(req *envdpb.StatRequest) (*envdpb.StatResponse, error) {
		entry, err := entryOf(req.GetPath())
		return &envdpb.StatResponse{Entry: entry}, err
	})
	handle(mux, envdpb.FilesystemMove, func(req *envdpb.MoveRequest) (*envdpb.MoveResponse, error) {
		return &envdpb.MoveResponse{}, os.Rename(req.GetSource(), req.GetDestination())
	})
	handle(mux, envdpb.FilesystemRemove, func(req *envdpb.RemoveRequest) (*envdpb.RemoveResponse, error) {
		return &envdpb.RemoveResponse{}, os.RemoveAll(req.GetPath())
	})
	handle(mux, envdpb.FilesystemListDir, func(req *envdpb.ListDirRequest) (*envdpb.ListDirResponse, error) {
		resp := &envdpb.ListDirResponse{}
		err := filepath.WalkDir(req.GetPath(), func(name string, _ fs.DirEntry, err error) error {
			if err != nil || name == req.GetPath() {
				return err
			}
			entry, err := entryOf(name)
			resp.Entries = append(resp.Entries, entry)
			return err
		})
		return resp, err
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if before == nil || !before(w, r) {
			mux.ServeHTTP(w, r)
		}
	})
}

// orderly has a daemon see requests in the order they were made: what is removed
// was uploaded before. A real one may come to a request that was given up when its
// file was asked to be removed already, and there is nothing to be done about it.
func orderly(daemon http.Handler) http.Handler {
	var uploads sync.RWMutex
	var removed atomic.Bool
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodPost && r.URL.Path == "/files":
			uploads.RLock()
			defer uploads.RUnlock()
			if removed.Load() {
				return
			}
		case r.URL.Path == envdpb.FilesystemRemove:
			uploads.Lock()
			defer uploads.Unlock()
			removed.Store(true)
		}
		daemon.ServeHTTP(w, r)
	})
}

func serveUpload(w http.ResponseWriter, r *http.Request) {
	name := r.URL.Query().Get("path")
	body := io.Reader(r.Body)
	if r.Header.Get("Content-Encoding") == "gzip" {
		body = mustGunzip(body)
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		panic(err)
	}
	f, err := os.Create(name)
	if err != nil {
		panic(err)
	}
	defer f.Close()
	if _, err := io.Copy(f, body); err != nil {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	io.WriteString(w, `[{"name":"x","path":"x","type":"file"}]`)
}

func entryOf(name string) (*envdpb.EntryInfo, error) {
	info, err := os.Lstat(name)
	if err != nil {
		return nil, err
	}
	e := &envdpb.EntryInfo{
		Name: info.Name(), Path: name, Size: info.Size(), Mode: uint32(info.Mode().Perm()),
		ModifiedTime: timestamppb.New(info.ModTime()), Type: envdpb.FileType_FILE_TYPE_FILE,
	}
	if info.IsDir() {
		e.Type = envdpb.FileType_FILE_TYPE_DIRECTORY
	}
	if link, err := os.Readlink(name); err == nil {
		e.SymlinkTarget = &link
	}
	return e, nil
}

// handle serves a unary procedure.
func handle[Req, Res any](mux *http.ServeMux, path string, serve func(*Req) (*Res, error)) {
	mux.Handle(path, connect.NewUnaryHandler(path, func(_ context.Context, req *connect.Request[Req]) (*connect.Response[Res], error) {
		resp, err := serve(req.Msg)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil, connect.NewError(connect.CodeNotFound, err)
		case err != nil:
			return nil, err
		}
		return connect.NewResponse(resp), nil
	}))
}
