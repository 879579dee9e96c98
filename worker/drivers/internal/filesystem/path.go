// Package filesystem has what the drivers of files, filesystem.*, share.
package filesystem

import (
	"errors"
	"path/filepath"
)

// InputPath returns the file that a config names under "path". A relative path
// starts at the base_dir of its resolved filesystem connection, where it has
// one.
func InputPath(config map[string]any) (string, error) {
	path, ok := config["path"].(string)
	if !ok || path == "" {
		return "", errors.New("'path' is required in config")
	}
	connection, _ := config["resolved_connection"].(map[string]any)
	base, _ := connection["base_dir"].(string)
	if base == "" || filepath.IsAbs(path) {
		return path, nil
	}
	return filepath.Join(base, path), nil
}
