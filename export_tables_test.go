package remote

// SetPartSize has an adapter send and read tables in parts of so many bytes.
func SetPartSize(a ExecutionAdapter, n int) {
	switch a := a.(type) {
	case *LocalAdapter:
		a.partSize = n
	case *E2BTransparentProxy:
		a.partSize = n
	}
}
