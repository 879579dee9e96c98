package mocktest_test

import (
	"testing"

	"github.com/osiris-pipelines/remote/mock"
	"github.com/osiris-pipelines/remote/mock/mocktest"
)

func TestMock(t *testing.T) {
	mocktest.TestSandbox(t, func(t *testing.T) mocktest.Env {
		s := mock.NewSandbox(&mock.Options{Programs: mocktest.Programs()})
		return mocktest.Env{Sandbox: s, Dir: "/tmp", Command: mocktest.Installed}
	})
}
