package jetstream

import (
	"errors"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"purchase-relay/internal/checkup"
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
		check checkup.Check
		want  checkup.Verdict
	}{
		"a version of today":        {judgeVersion("2.15.2"), checkup.Pass},
		"an older version":          {judgeVersion("2.9.25"), checkup.Warn},
		"a version too old":         {judgeVersion("2.8.4"), checkup.Fail},
		"no version":                {judgeVersion("next"), checkup.Warn},
		"a line on this machine":    {judgeLine("nats://127.0.0.1:4222", false), checkup.Pass},
		"an encrypted line":         {judgeLine("nats://nats.example:4222", true), checkup.Pass},
		"an open line":              {judgeLine("nats://nats.example:4222", false), checkup.Warn},
		"a wrong password":          {judgeConnection(nats.ErrAuthorization), checkup.Fail},
		"a certificate":             {judgeConnection(errors.New("tls: bad certificate")), checkup.Fail},
		"nobody":                    {judgeConnection(nats.ErrNoServers), checkup.Fail},
		"all rights":                {judgeRights(nil), checkup.Pass},
		"no figures":                {judgeRights([]string{subjectInfo}), checkup.Warn},
		"no purchases":              {judgeRights([]string{"purchases.live.doctor", subjectInfo}), checkup.Fail},
		"a stream with room":        {judgeStream("s", want, want, 3, 79<<20), checkup.Pass},
		"a stream that fills":       {judgeStream("s", want, want, 3, 85<<20), checkup.Warn},
		"a stream that is full":     {judgeStream("s", want, want, 3, 96<<20), checkup.Fail},
		"a stream that was changed": {judgeStream("s", other, want, 3, 1<<20), checkup.Warn},
		"a consumer":                {judgeConsumer("c", good, 1, 1), checkup.Pass},
		"one that was changed":      {judgeConsumer("c", odd, 1, 1), checkup.Warn},
		"room for streams":          {judgeRoom(10<<30, 1<<20, 4<<30, 2<<30), checkup.Pass},
		"no limit":                  {judgeRoom(-1, 1<<20, 4<<30, 2<<30), checkup.Pass},
		"no room for streams":       {judgeRoom(5<<30, 1<<20, 4<<30, 2<<30), checkup.Fail},
		"a full disk":               {judgeRoom(5<<30, 5<<30, 5<<30, 0), checkup.Fail},
	} {
		if tc.check.Verdict != tc.want || (tc.check.Remedy == "") != (tc.want == checkup.Pass) {
			t.Errorf("%s: %+v, want %q", name, tc.check, tc.want)
		}
	}
}
