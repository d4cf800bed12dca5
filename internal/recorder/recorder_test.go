package recorder

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"purchase-relay/internal/message"
	"purchase-relay/internal/purchase"
)

// journal keeps calls in order.
type journal struct {
	mu      sync.Mutex
	entries []string
}

func (j *journal) note(entry string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.entries = append(j.entries, entry)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Join(j.entries, ", ")
}

type fakeMessage struct {
	*journal
	id string
}

func (m fakeMessage) Ack() error                      { m.note("ack " + m.id); return nil }
func (m fakeMessage) Leave()                          {}
func (m fakeMessage) DoubleAck(context.Context) error { m.note("double-ack " + m.id); return nil }
func (m fakeMessage) NakWithDelay(d time.Duration) error {
	m.note("nak " + m.id + " " + d.String())
	return nil
}
func (m fakeMessage) TermWithReason(string) error { m.note("term " + m.id); return nil }
func (m fakeMessage) InProgress() error           { m.note("in-progress " + m.id); return nil }

// source returns its batches, then blocks.
type source struct {
	mu      sync.Mutex
	batches [][]message.Received
	err     error
}

func (s *source) Fetch(ctx context.Context, _ int) ([]message.Received, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil, s.err
	}
	if len(s.batches) == 0 {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	batch := s.batches[0]
	s.batches = s.batches[1:]
	return batch, nil
}

type ledger struct {
	*journal
	settled []message.Outcome
	err     error
	unknown []string

	statsErr error
}

func (l *ledger) RecordStats(_ context.Context, s message.Stats) error {
	if l.statsErr != nil {
		l.note("failed " + s.Day)
		return l.statsErr
	}
	l.note("stats " + s.Day)
	return nil
}

func (l *ledger) Settle(_ context.Context, outcomes []message.Outcome) ([]string, error) {
	ids := make([]string, len(outcomes))
	for i, o := range outcomes {
		ids[i] = o.EventID
	}
	if l.err != nil {
		l.note("failed " + strings.Join(ids, "+"))
		return nil, l.err
	}
	l.settled = append(l.settled, outcomes...)
	l.note("settle " + strings.Join(ids, "+"))
	return l.unknown, nil
}

func queued(t *testing.T, j *journal, id string) message.Received {
	t.Helper()
	data := message.EncodeOutcomes([][]byte{encode(t, delivered(id))})
	return message.Received{Data: data, Acker: fakeMessage{j, id}}
}

func delivered(id string) message.Outcome {
	return message.Outcome{EventID: id, Generation: 1, Result: purchase.StatusDelivered, At: time.Unix(1, 0)}
}

func encode(t *testing.T, o message.Outcome) []byte {
	t.Helper()
	data, err := message.EncodeOutcome(o)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func run(t *testing.T, s *source, l *ledger, d time.Duration) *observer.ObservedLogs {
	t.Helper()
	core, log := observer.New(zapcore.InfoLevel)
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	if err := New(s, l, zap.New(core)).Run(ctx); err != nil {
		t.Error(err)
	}
	return log
}

func TestRecorder_AcknowledgesAfterCommit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		j := &journal{}
		malformed := message.Received{Data: []byte(`{"version":1}`), Acker: fakeMessage{j, "malformed"}}
		newer := message.Received{
			Data: fmt.Appendf(nil, `{"version":%d}`, message.Version+1), Acker: fakeMessage{j, "newer"},
		}
		s := &source{batches: [][]message.Received{{queued(t, j, "a"), malformed, queued(t, j, "b"), newer}}}
		log := run(t, s, &ledger{journal: j, unknown: []string{"b"}}, time.Second)
		if got, want := j.String(), "term malformed, nak newer 1m0s, settle a+b, ack a, double-ack b"; got != want {
			t.Errorf("calls = %s\nwant %s", got, want)
		}
		if log.FilterField(zap.String("checkout_session_id", "b")).Len() != 1 {
			t.Errorf("log = %v, want a line about b", log.All())
		}
	})
}

// A message is acknowledged when all its outcomes are recorded. A malformed one does not affect the others.
func TestRecorder_RecordsLargeMessageInBatches(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		j := &journal{}
		var encoded [][]byte
		var ids []string
		for i := range batchSize + 2 {
			id := fmt.Sprintf("cs_%d", i)
			encoded, ids = append(encoded, encode(t, delivered(id))), append(ids, id)
		}
		encoded[1], ids = []byte(`{"version":1,"event_id":"cs_1"}`), slices.Delete(ids, 1, 2)
		large := message.Received{Data: message.EncodeOutcomes(encoded), Acker: fakeMessage{j, "large"}}
		run(t, &source{batches: [][]message.Received{{large, queued(t, j, "a")}}}, &ledger{journal: j}, time.Second)
		want := "settle " + strings.Join(ids[:batchSize], "+") + ", in-progress large, in-progress a, settle " +
			ids[batchSize] + "+a, ack large, double-ack a"
		if got := j.String(); got != want {
			t.Errorf("calls = %s\nwant %s", got, want)
		}
	})
}

func TestRecorder_NaksWhileLedgerIsDown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		j := &journal{}
		s := &source{batches: [][]message.Received{{queued(t, j, "a"), queued(t, j, "b")}, {queued(t, j, "a")}}}
		log := run(t, s, &ledger{journal: j, err: errors.New("connection refused")}, time.Minute)
		if got, want := j.String(), "failed a+b, nak a 1s, nak b 1s, failed a, nak a 1s"; got != want {
			t.Errorf("calls = %s\nwant %s", got, want)
		}
		if log.Len() != 1 {
			t.Errorf("log = %v, want one line", log.All())
		}
	})
}

func TestRecorder_ResumesWhenQueueReturns(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		j := &journal{}
		s := &source{err: errors.New("no responders")}
		time.AfterFunc(time.Minute, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.err, s.batches = nil, [][]message.Received{{queued(t, j, "a")}}
		})
		log := run(t, s, &ledger{journal: j}, 2*time.Minute)
		var lines []string
		for _, e := range log.All() {
			lines = append(lines, e.Message)
		}
		if got, want := j.String(), "settle a, double-ack a"; got != want {
			t.Errorf("calls = %s, want %s", got, want)
		}
		if want := []string{"Outcomes wait in the queue", "Recording resumed"}; !slices.Equal(lines, want) {
			t.Errorf("log = %q, want %q", lines, want)
		}
	})
}

// A time from a worker's clock in the year 9999 is not recorded.
func TestRecorder_DatesOutcomesByQueueClock(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		j := &journal{}
		taken := time.Now().Add(-time.Minute).UTC()
		far := time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)
		data := encode(t, message.Outcome{
			EventID: "cs_1", Generation: 1, Result: purchase.StatusDead, Reason: purchase.ReasonRefused,
			At: far, Taken: far, Sequence: 7, Attempt: &message.Attempt{ID: "a", At: far},
		})
		l := &ledger{journal: j}
		m := message.Received{
			Data: message.EncodeOutcomes([][]byte{data}), Taken: taken, Acker: fakeMessage{j, "a"},
		}
		run(t, &source{batches: [][]message.Received{{m}}}, l, time.Second)
		if len(l.settled) != 1 {
			t.Fatalf("settled %d outcomes, want 1", len(l.settled))
		}
		o := l.settled[0]
		if !o.At.Equal(taken) || !o.Attempt.At.Equal(taken) || !o.Taken.IsZero() || o.Sequence != 0 {
			t.Errorf("settled %+v with attempt %+v; want both at %s and no sequence", o, o.Attempt, taken)
		}
	})
}

// counts returns TikTok's counts of a day near the start of a synctest bubble's clock.
func counts(t *testing.T, j *journal, day string, delivered int) message.Received {
	t.Helper()
	data, err := message.EncodeStats(message.Stats{
		PixelID: "C4", Day: day, AskedAt: time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC),
		Counts: []message.Count{{Event: "SHOPPING", Server: 3}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return message.Received{
		Subject: message.SubjectStats, Data: data, NumDelivered: delivered, Acker: fakeMessage{j, day},
	}
}

// TikTok's counts are recorded behind the outcomes of their batch, and hold up none.
func TestRecorder_RecordsStats(t *testing.T) {
	t.Parallel()
	broken := message.Received{Subject: message.SubjectStats, Data: []byte(`{"version":1}`)}
	newer := message.Received{Subject: message.SubjectStats, Data: []byte(`{"version":2}`)}
	for name, tc := range map[string]struct {
		statsErr  error
		settleErr error
		delivered int
		want      string
	}{
		"recorded": {
			delivered: 1,
			want: "settle a, double-ack a, " +
				"stats 1999-12-31, ack 1999-12-31, term broken, stats 1999-12-30, ack 1999-12-30, term newer",
		},
		"counts fail": {
			delivered: 9, statsErr: errors.New("no table"),
			want: "settle a, double-ack a, " +
				"failed 1999-12-31, nak 1999-12-31 10s, term broken, nak 1999-12-30 10s, term newer",
		},
		"counts fail for long": {
			delivered: 10, statsErr: errors.New("no table"),
			want: "settle a, double-ack a, " +
				"failed 1999-12-31, term 1999-12-31, term broken, term 1999-12-30, term newer",
		},
		"Postgres is down": {
			delivered: 1, statsErr: errors.New("refused"), settleErr: errors.New("refused"),
			want: "failed a, nak a 1s, " +
				"failed 1999-12-31, nak 1999-12-31 10s, term broken, nak 1999-12-30 10s, term newer",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				j := &journal{}
				broken, newer := broken, newer
				broken.Acker, newer.Acker = fakeMessage{j, "broken"}, fakeMessage{j, "newer"}
				l := &ledger{journal: j, err: tc.settleErr, statsErr: tc.statsErr}
				batch := []message.Received{
					counts(t, j, "1999-12-31", tc.delivered), broken, counts(t, j, "1999-12-30", tc.delivered),
					queued(t, j, "a"), newer,
				}
				run(t, &source{batches: [][]message.Received{batch}}, l, time.Second)
				if got := j.String(); got != tc.want {
					t.Errorf("calls = %s\nwant %s", got, tc.want)
				}
			})
		})
	}
}

// A batch of counts alone is recorded as well.
func TestRecorder_RecordsStatsAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		j := &journal{}
		s := &source{batches: [][]message.Received{{counts(t, j, "1999-12-31", 1)}}}
		run(t, s, &ledger{journal: j}, time.Second)
		if got, want := j.String(), "stats 1999-12-31, ack 1999-12-31"; got != want {
			t.Errorf("calls = %s, want %s", got, want)
		}
	})
}
