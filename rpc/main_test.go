package rpc_test

import (
	"os"
	"strconv"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// stress multiplies the size of the property tests, with OSIRIS_STRESS=1.
func stress(normal, stressed int) int {
	if on, _ := strconv.ParseBool(os.Getenv("OSIRIS_STRESS")); on {
		return stressed
	}
	return normal
}
