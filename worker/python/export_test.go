package python

// HoldFile is what keeps a netrc where there is no memfd.
func HoldFile(content []byte) (path string, closeFile func() error, err error) {
	return holdFile(content)
}
