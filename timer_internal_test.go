package remote

import (
	"testing"
	"testing/synctest"
	"time"
)

// A run's time is over when it has gone on for as long, whatever it stood still
// for, also several times over.
func TestTimer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		over := make(chan time.Duration, 1)
		tm := startTimer(10*time.Second, func() { over <- time.Since(began) })
		time.Sleep(4 * time.Second)
		goOn, again := tm.stand(), tm.stand()
		time.Sleep(time.Minute)
		goOn()
		goOn() // which changes nothing
		time.Sleep(time.Minute)
		again()
		time.Sleep(5 * time.Second)
		defer tm.stand()() // and is stopped meanwhile
		if len(over) != 0 {
			t.Error("it is over too soon")
		}
		tm.stand()()
		other := startTimer(6*time.Second, func() { over <- time.Since(began) })
		defer other.stop()
		other.stand()()
		if got, want := <-over, 9*time.Second+2*time.Minute+6*time.Second; got != want {
			t.Errorf("over after %s, want %s", got, want)
		}
		tm.stop()
		time.Sleep(time.Hour)
		if len(over) != 0 {
			t.Error("it is over, and was stopped")
		}
	})
	var none *timer
	none.stand()()
	none.stop()
}
