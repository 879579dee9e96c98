//go:build !linux

package machine

import (
	"runtime"

	"github.com/osiris-pipelines/remote/mock/internal/envd"
)

func hostUsage() envd.Usage { return envd.Usage{CPUs: runtime.NumCPU()} }
