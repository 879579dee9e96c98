package remote

// NewLocalSandbox gives the conformance suite what LocalAdapter works with.
func NewLocalSandbox(dir string) Sandbox { return &localSandbox{dir: dir} }
