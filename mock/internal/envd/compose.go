package envd

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
)

// composeRequest asks to make one file out of others.
type composeRequest struct {
	Sources     []string `json:"source_paths"`
	Destination string   `json:"destination"`
	Username    *string  `json:"username"`
}

func (d *Daemon) compose(w http.ResponseWriter, r *http.Request) {
	var req composeRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		writeError(w, http.StatusBadRequest, fmt.Errorf("read request: %w", err))
		return
	}
	name, err := d.join(req)
	if err != nil {
		answerError(w, err)
		return
	}
	writeJSON(w, written{Name: path.Base(name), Path: name, Type: "file"})
}

// join puts the sources into a new file, gives it the name of the destination
// and removes the sources. It returns that name in absolute form.
func (d *Daemon) join(req composeRequest) (string, error) {
	if len(req.Sources) == 0 || req.Destination == "" {
		return "", failure(http.StatusBadRequest, "source_paths or destination is missing")
	}
	u, err := d.fileUser(req.Username)
	if err != nil {
		return "", err
	}
	dest, err := d.resolve(req.Destination, u)
	if err != nil {
		return "", failure(http.StatusBadRequest, "destination: %w", err)
	}
	sources, err := d.sources(req.Sources, dest, u)
	if err != nil {
		return "", err
	}
	clean := path.Clean(dest)
	if err := d.makeDirs(path.Dir(clean), u); err != nil {
		return "", fmt.Errorf("make directories: %w", err)
	}
	temp := clean + ".e2b-compose." + rand.Text() + ".tmp"
	err = d.concatenate(temp, sources, u)
	if err == nil {
		err = d.machine.Rename(temp, clean)
	}
	if err != nil {
		_ = d.machine.RemoveAll(temp)
		return "", full(err)
	}
	for _, src := range sources {
		_ = d.machine.RemoveAll(src)
	}
	return dest, nil
}

// sources checks all sources before any is touched.
func (d *Daemon) sources(names []string, dest string, u User) ([]string, error) {
	sources := make([]string, len(names))
	for i, name := range names {
		abs, err := d.resolve(name, u)
		if err != nil {
			return nil, failure(http.StatusBadRequest, "source %q: %w", name, err)
		}
		if abs == dest {
			return nil, failure(http.StatusBadRequest, "source %q is the destination", name)
		}
		info, err := d.stat(abs)
		if err != nil {
			return nil, failure(http.StatusNotFound, "source: %w", err)
		}
		if !info.Mode().IsRegular() {
			return nil, failure(http.StatusBadRequest, "source %q is not a regular file", name)
		}
		sources[i] = path.Clean(abs)
	}
	return sources, nil
}

func (d *Daemon) concatenate(dest string, sources []string, u User) error {
	f, err := d.machine.Create(dest, u)
	if err != nil {
		return fmt.Errorf("create destination: %w", err)
	}
	for _, src := range sources {
		if err := d.appendTo(f, src); err != nil {
			_ = f.Close()
			return err
		}
	}
	return f.Close()
}

func (d *Daemon) appendTo(w io.Writer, src string) error {
	f, err := d.machine.Open(src)
	if err != nil {
		return fmt.Errorf("open source: %w", err)
	}
	_, err = io.Copy(w, f)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("copy source: %w", err)
	}
	return nil
}
