package ingestdoctor

import (
	"errors"
	"strings"
	"testing"
	"time"

	"purchase-relay/internal/ledger"
	"purchase-relay/internal/ops/doctor"
	"purchase-relay/internal/secret"
)

type judged struct {
	check doctor.Check
	want  doctor.Verdict
}

// verify expects the verdict, a remedy unless it is Pass, and no secret.
func verify(t *testing.T, cases map[string]judged) {
	t.Helper()
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			if tc.check.Verdict != tc.want || (tc.check.Remedy == "") != (tc.want == doctor.Pass) {
				t.Errorf("check = %+v, want %q", tc.check, tc.want)
			}
			if strings.Contains(tc.check.Found+tc.check.Remedy, "hunter2") {
				t.Errorf("check = %+v, want no secret", tc.check)
			}
		})
	}
}

const pass, warn, fail = doctor.Pass, doctor.Warn, doctor.Fail

func TestPostgres_Verdicts(t *testing.T) {
	type server = ledger.Server
	state := func(code string) doctor.Check {
		return judgePostgres(&ledger.ServerError{SQLState: code, Message: "no"})
	}
	tls := func(query string) doctor.Check {
		return transport("TLS", secret.String("postgres://u:hunter2@db.example/d"+query))
	}
	good := server{Version: 150018, VersionText: "15.18", Max: 100}
	with := func(change func(s *server)) server { s := good; change(&s); return s }
	schema := func(level, oldest int) ledger.Schema {
		return ledger.Schema{Exists: true, Level: level, Known: 20, Oldest: oldest}
	}
	now := time.Now()
	verify(t, map[string]judged{
		"no URL":                     {judgePostgres(ledger.ErrURL), fail},
		"no server":                  {judgePostgres(errors.New("connection refused")), fail},
		"wrong password":             {state("28P01"), fail},
		"no database":                {state("3D000"), fail},
		"no connection left":         {state("53300"), fail},
		"starting up":                {state("57P03"), fail},
		"unencrypted":                {tls(""), warn},
		"unverified":                 {tls("?sslmode=require"), warn},
		"verified":                   {tls("?sslmode=verify-full"), pass},
		"an unknown sslmode":         {tls("?sslmode=hunter2"), fail},
		"a tested version":           {judgeVersion(good), pass},
		"an older version":           {judgeVersion(with(func(s *server) { s.Version = 140000 })), warn},
		"a version too old":          {judgeVersion(with(func(s *server) { s.Version = 120022 })), fail},
		"a primary":                  {judgePrimary(good), pass},
		"a replica":                  {judgePrimary(with(func(s *server) { s.Replica = true })), fail},
		"durable":                    {judgeDurability(good), pass},
		"fsync off":                  {judgeDurability(server{LossyOff: []string{"fsync"}}), fail},
		"clocks agree":               {judgeClock(with(func(s *server) { s.ClockAhead = -time.Second })), pass},
		"clock behind":               {judgeClock(with(func(s *server) { s.ClockAhead = -5 * time.Second })), warn},
		"clock far ahead":            {judgeClock(with(func(s *server) { s.ClockAhead = 2 * time.Minute })), fail},
		"free connections":           {judgeConnections(good), pass},
		"few free connections":       {judgeConnections(with(func(s *server) { s.Used = 90 })), warn},
		"no schema":                  {judgeSchema(ledger.Schema{}, nil), fail},
		"an unreadable schema":       {judgeSchema(ledger.Schema{}, errors.New("timeout")), fail},
		"no privilege on the schema": {judgeSchema(ledger.Schema{}, ledger.ErrNoRights), fail},
		"this level":                 {judgeSchema(schema(20, 1), nil), pass},
		"a level behind":             {judgeSchema(schema(19, 1), nil), fail},
		"a level ahead":              {judgeSchema(schema(21, 1), nil), warn},
		"an incompatible schema":     {judgeSchema(schema(21, 21), nil), fail},
		"all privileges":             {judgeRole(nil, nil), pass},
		"a missing privilege":        {judgeRole([]string{"UPDATE on attempts"}, nil), fail},
		"unreadable privileges":      {judgeRole(nil, errors.New("timeout")), fail},
		"no owner":                   {judgePrivilege(false, nil), pass},
		"may create tables":          {judgePrivilege(true, nil), warn},
		"unreadable privilege":       {judgePrivilege(false, errors.New("timeout")), fail},
		"live checkouts":             {judgeEvents(now, now, nil), pass},
		"only test checkouts":        {judgeEvents(time.Time{}, now, nil), warn},
		"no checkout":                {judgeEvents(time.Time{}, time.Time{}, nil), warn},
		"unreadable checkouts":       {judgeEvents(time.Time{}, time.Time{}, errors.New("timeout")), fail},
	})
}

func TestStripe_Verdicts(t *testing.T) {
	const good = "whsec_0123456789abcdef0123456789abcdef"
	secrets := func(list secret.String) doctor.Check { return append(signingSecrets(list), doctor.Check{})[0] }
	verify(t, map[string]judged{
		"a secret":                 {secrets(good), pass},
		"two secrets":              {secrets(good + ", " + good + "0"), pass},
		"one secret twice":         {secrets(good + "," + good), warn},
		"a short secret":           {secrets("whsec_hunter2"), warn},
		"an API key":               {secrets("sk_live_hunter2"), fail},
		"a restricted key":         {judgeAPIKey("rk_live_hunter2", true), pass},
		"a test key":               {judgeAPIKey("rk_test_hunter2", false), pass},
		"a test key, live sales":   {judgeAPIKey("rk_test_hunter2", true), fail},
		"an unrestricted test key": {judgeAPIKey("sk_test_hunter2", true), fail},
		"an unrestricted key":      {judgeAPIKey("sk_live_hunter2", true), warn},
		"another kind of key":      {judgeAPIKey("hunter2", true), fail},
		"a publishable key":        {judgeAPIKey("pk_live_hunter2", true), fail},
		"good signatures":          {judgeSignatures(webhookCounts{validSignature: 5, invalidSignature: 1}), pass},
		"only wrong signatures":    {judgeSignatures(webhookCounts{invalidSignature: 1}), fail},
		"snapshot events":          {judgeThin(webhookCounts{validSignature: 5}), pass},
		"thin events":              {judgeThin(webhookCounts{validSignature: 5, thin: 2}), fail},
		"a good configuration":     {doctor.Configuration(nil)[0], pass},
		"a bad configuration":      {doctor.Configuration([]string{"X is wrong"})[0], fail},
	})
	if none := signingSecrets(""); len(none) != 0 {
		t.Errorf("checks without a secret = %+v, want none", none)
	}
}

func TestCountWebhooks_ByResult(t *testing.T) {
	got := countWebhooks([]byte(`# HELP purchase_relay_webhooks_total x
purchase_relay_webhooks_total{result="processed",type="checkout.session.completed"} 3
purchase_relay_webhooks_total{result="no_api_key",type="thin"} 2
purchase_relay_webhooks_total{result="processed",type="thin"} 1
purchase_relay_webhooks_total{result="ignored",type="other"} 1
purchase_relay_webhooks_total{result="invalid_signature",type="none"} 4
purchase_relay_webhooks_total{result="not_an_event",type="none"} 9
purchase_relay_webhook_duration_seconds_count{result="processed"} 3
`))
	if want := (webhookCounts{validSignature: 7, invalidSignature: 4, thin: 2}); got != want {
		t.Errorf("counts = %+v, want %+v", got, want)
	}
}
