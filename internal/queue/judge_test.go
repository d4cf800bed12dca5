package queue

import (
	"errors"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"purchase-relay/internal/ops/doctor"
)

// Each judgement passes, and does not.
func TestJudgements(t *testing.T) {
	want := streams(StreamConfig{Replicas: 1, MaxBytes: 100 << 20})[0]
	other := want
	other.Discard, other.MaxBytes = jetstream.DiscardOld, 50<<20
	good := consumer("worker")
	odd := good
	odd.MaxDeliver = 5
	for name, tc := range map[string]struct {
		check doctor.Check
		want  doctor.Verdict
	}{
		"a version of today":        {judgeVersion("2.15.2"), doctor.Pass},
		"an older version":          {judgeVersion("2.9.25"), doctor.Warn},
		"a version too old":         {judgeVersion("2.8.4"), doctor.Fail},
		"no version":                {judgeVersion("next"), doctor.Warn},
		"a line on this machine":    {judgeLine("nats://127.0.0.1:4222", false), doctor.Pass},
		"an encrypted line":         {judgeLine("nats://nats.example:4222", true), doctor.Pass},
		"an open line":              {judgeLine("nats://nats.example:4222", false), doctor.Warn},
		"a wrong password":          {judgeConnection(nats.ErrAuthorization), doctor.Fail},
		"a certificate":             {judgeConnection(errors.New("tls: bad certificate")), doctor.Fail},
		"nobody":                    {judgeConnection(nats.ErrNoServers), doctor.Fail},
		"all rights":                {judgeRights(nil), doctor.Pass},
		"no figures":                {judgeRights([]string{subjectInfo}), doctor.Warn},
		"no purchases":              {judgeRights([]string{"purchases.live.doctor", subjectInfo}), doctor.Fail},
		"a stream with room":        {judgeStream("s", want, want, 3, 79<<20), doctor.Pass},
		"a stream that fills":       {judgeStream("s", want, want, 3, 85<<20), doctor.Warn},
		"a stream that is full":     {judgeStream("s", want, want, 3, 96<<20), doctor.Fail},
		"a stream that was changed": {judgeStream("s", other, want, 3, 1<<20), doctor.Warn},
		"a consumer":                {judgeConsumer("c", good, 1, 1), doctor.Pass},
		"one that was changed":      {judgeConsumer("c", odd, 1, 1), doctor.Warn},
		"room for streams":          {judgeRoom(10<<30, 1<<20, 4<<30, 2<<30), doctor.Pass},
		"no limit":                  {judgeRoom(-1, 1<<20, 4<<30, 2<<30), doctor.Pass},
		"no room for streams":       {judgeRoom(5<<30, 1<<20, 4<<30, 2<<30), doctor.Fail},
		"a full disk":               {judgeRoom(5<<30, 5<<30, 5<<30, 0), doctor.Fail},
	} {
		if tc.check.Verdict != tc.want || (tc.check.Remedy == "") != (tc.want == doctor.Pass) {
			t.Errorf("%s: %+v, want %q", name, tc.check, tc.want)
		}
	}
}
