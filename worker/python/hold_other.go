//go:build !linux

package python

// hold keeps content where processes of the same user find it at path.
func hold(content []byte) (path string, closeHeld func() error, err error) {
	return holdFile(content)
}
