package worker

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/osiris-pipelines/remote/rpc"
)

// Seal lists the files below an artifacts directory with their sizes and
// checksums. A directory that does not exist holds none.
func Seal(ctx context.Context, fsys FS, dir string) (*rpc.SealResult, error) {
	result := &rpc.SealResult{Artifacts: []rpc.Artifact{}}
	if err := seal(ctx, fsys, dir, "", result); err != nil {
		return nil, fmt.Errorf("seal artifacts: %w", err)
	}
	slices.SortFunc(result.Artifacts, func(a, b rpc.Artifact) int { return strings.Compare(a.Path, b.Path) })
	slices.SortFunc(result.Skipped, func(a, b rpc.SkippedArtifact) int { return strings.Compare(a.Path, b.Path) })
	return result, nil
}

func seal(ctx context.Context, fsys FS, root, rel string, result *rpc.SealResult) error {
	entries, err := fsys.ReadDir(filepath.Join(root, filepath.FromSlash(rel)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		name := path.Join(rel, e.Name())
		switch {
		case e.IsDir():
			err = seal(ctx, fsys, root, name, result)
			if err != nil {
				return err
			}
		case !e.Type().IsRegular():
			result.Skipped = append(result.Skipped, rpc.SkippedArtifact{Path: name, Reason: "it is " + kind(e.Type()) + ", not a regular file"})
		default:
			a, err := sealFile(fsys, filepath.Join(root, filepath.FromSlash(name)))
			if err != nil {
				result.Skipped = append(result.Skipped, rpc.SkippedArtifact{Path: name, Reason: err.Error()})
				continue
			}
			a.Path = name
			a.StepID, _, _ = strings.Cut(name, "/")
			result.Artifacts = append(result.Artifacts, a)
		}
	}
	return nil
}

// kind says what something is that is no regular file.
func kind(t fs.FileMode) string {
	switch {
	case t&fs.ModeSymlink != 0:
		return "a symbolic link"
	case t&fs.ModeNamedPipe != 0:
		return "a named pipe"
	case t&fs.ModeSocket != 0:
		return "a socket"
	case t&fs.ModeDevice != 0:
		return "a device"
	}
	return "something else"
}

func sealFile(fsys FS, name string) (rpc.Artifact, error) {
	f, err := fsys.Open(name)
	if err != nil {
		return rpc.Artifact{}, err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	if err != nil {
		return rpc.Artifact{}, err
	}
	return rpc.Artifact{Size: n, SHA256: hex.EncodeToString(h.Sum(nil))}, nil
}
