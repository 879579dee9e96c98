package mock

import "github.com/osiris-pipelines/remote/mock/internal/envd"

// MachineOf returns a sandbox as a daemon sees it.
func MachineOf(s *Sandbox) envd.Machine { return &memoryMachine{sandbox: s} }
