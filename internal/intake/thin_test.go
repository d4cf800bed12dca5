package intake

import (
	"testing"
	"testing/synctest"
	"time"
)

// Stripe repeats an event for three days, the last times every twelve hours: a longer pause ends the period.
func TestHandler_RejectedThinEndsAfterPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &Handler{service: &Service{Config: Config{Now: time.Now}}}
		first := time.Now()
		h.countThin(first)
		<-time.After(11 * time.Hour)
		h.countThin(time.Now())
		<-time.After(11 * time.Hour)
		if got := h.RejectedThin(); got.Count != 2 || !got.First.Equal(first) {
			t.Errorf("rejected = %+v, want 2 since %s", got, first)
		}
		<-time.After(time.Hour)
		if got := h.RejectedThin(); got != (RejectedThin{}) {
			t.Errorf("rejected = %+v after 12 hours, want none", got)
		}
		h.countThin(time.Now())
		if got := h.RejectedThin(); got.Count != 1 || !got.First.Equal(time.Now()) {
			t.Errorf("rejected = %+v, want a new period", got)
		}
	})
}
