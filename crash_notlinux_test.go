//go:build !linux

package remote_test

import "github.com/osiris-pipelines/remote/worker"

func addProcessDrivers(func(string, worker.Mode, driverFunc)) {}
