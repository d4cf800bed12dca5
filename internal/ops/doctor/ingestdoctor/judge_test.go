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

// judged is a check and the verdict that it must have.
type judged struct {
	check doctor.Check
	want  doctor.Verdict
}

// verify fails where a verdict differs, where a remedy is missing or needless, and where a secret is printed.
func verify(t *testing.T, cases map[string]judged) {
	t.Helper()
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			if tc.check.Verdict != tc.want || (tc.check.Remedy == "") != (tc.want == doctor.Pass) {
				t.Errorf("check = %+v, want %q", tc.check, tc.want)
			}
			if strings.Contains(tc.check.Found+tc.check.Remedy, "hunter2") {
				t.Errorf("a secret is printed: %+v", tc.check)
			}
		})
	}
}

func TestPostgres_Judgements(t *testing.T) {
	good := ledger.Server{Version: 150018, VersionText: "15.18", Max: 100}
	with := func(change func(s *ledger.Server)) ledger.Server { s := good; change(&s); return s }
	schema := func(level, oldest int) ledger.Schema {
		return ledger.Schema{Exists: true, Level: level, Known: 20, Oldest: oldest}
	}
	now := time.Now()
	verify(t, map[string]judged{
		"no URL":             {judgePostgres(ledger.ErrURL), doctor.Fail},
		"no server":          {judgePostgres(errors.New("connection refused")), doctor.Fail},
		"wrong password":     {judgePostgres(&ledger.ServerError{SQLState: "28P01", Message: "no"}), doctor.Fail},
		"no database":        {judgePostgres(&ledger.ServerError{SQLState: "3D000", Message: "no"}), doctor.Fail},
		"no connection left": {judgePostgres(&ledger.ServerError{SQLState: "53300", Message: "no"}), doctor.Fail},
		"starting up":        {judgePostgres(&ledger.ServerError{SQLState: "57P03", Message: "no"}), doctor.Fail},
		"in the clear":       {transport("TLS", "postgres://u:hunter2@db.example/d"), doctor.Warn},
		"unverified":         {transport("TLS", "postgres://u:hunter2@db.example/d?sslmode=require"), doctor.Warn},
		"verified": {
			transport("TLS", "postgres://u:hunter2@db.example/d?sslmode=verify-full"),
			doctor.Pass,
		},
		"an unknown sslmode": {transport("TLS", "postgres://u:p@db.example/d?sslmode=hunter2"), doctor.Fail},
		"a tested version":   {judgeVersion(good), doctor.Pass},
		"an older version":   {judgeVersion(with(func(s *ledger.Server) { s.Version = 140000 })), doctor.Warn},
		"a version too old":  {judgeVersion(with(func(s *ledger.Server) { s.Version = 120022 })), doctor.Fail},
		"a primary":          {judgePrimary(good), doctor.Pass},
		"a replica":          {judgePrimary(with(func(s *ledger.Server) { s.Replica = true })), doctor.Fail},
		"durable":            {judgeDurability(good), doctor.Pass},
		"fsync off":          {judgeDurability(with(func(s *ledger.Server) { s.LossyOff = []string{"fsync"} })), doctor.Fail},
		"clocks agree":       {judgeClock(with(func(s *ledger.Server) { s.ClockAhead = -time.Second })), doctor.Pass},
		"clock behind": {
			judgeClock(with(func(s *ledger.Server) { s.ClockAhead = -5 * time.Second })),
			doctor.Warn,
		},
		"clock far ahead": {
			judgeClock(with(func(s *ledger.Server) { s.ClockAhead = 2 * time.Minute })),
			doctor.Fail,
		},
		"free connections":        {judgeConnections(good), doctor.Pass},
		"few free connections":    {judgeConnections(with(func(s *ledger.Server) { s.Used = 90 })), doctor.Warn},
		"no schema":               {judgeSchema(ledger.Schema{}, nil), doctor.Fail},
		"an unreadable schema":    {judgeSchema(ledger.Schema{}, errors.New("timeout")), doctor.Fail},
		"a schema without rights": {judgeSchema(ledger.Schema{}, ledger.ErrNoRights), doctor.Fail},
		"this level":              {judgeSchema(schema(20, 1), nil), doctor.Pass},
		"a level behind":          {judgeSchema(schema(19, 1), nil), doctor.Fail},
		"a level ahead":           {judgeSchema(schema(21, 1), nil), doctor.Warn},
		"too new a schema":        {judgeSchema(schema(21, 21), nil), doctor.Fail},
		"all rights":              {judgeRole(nil, nil), doctor.Pass},
		"a missing right":         {judgeRole([]string{"UPDATE on attempts"}, nil), doctor.Fail},
		"unreadable rights":       {judgeRole(nil, errors.New("timeout")), doctor.Fail},
		"least privilege":         {judgePrivilege(false, nil), doctor.Pass},
		"may create tables":       {judgePrivilege(true, nil), doctor.Warn},
		"unreadable privilege":    {judgePrivilege(false, errors.New("timeout")), doctor.Fail},
		"live checkouts":          {judgeEvents(now, now, nil), doctor.Pass},
		"test checkouts alone":    {judgeEvents(time.Time{}, now, nil), doctor.Warn},
		"no checkout":             {judgeEvents(time.Time{}, time.Time{}, nil), doctor.Warn},
		"unreadable checkouts":    {judgeEvents(time.Time{}, time.Time{}, errors.New("timeout")), doctor.Fail},
	})
}

func TestStripe_Judgements(t *testing.T) {
	const good = "whsec_0123456789abcdef0123456789abcdef"
	secrets := func(list secret.String) doctor.Check { return append(signingSecrets(list), doctor.Check{})[0] }
	verify(t, map[string]judged{
		"a secret":                 {secrets(good), doctor.Pass},
		"two secrets":              {secrets(good + ", " + good + "0"), doctor.Pass},
		"one secret twice":         {secrets(good + "," + good), doctor.Warn},
		"a secret cut off":         {secrets("whsec_hunter2"), doctor.Warn},
		"an API key for a secret":  {secrets("sk_live_hunter2"), doctor.Fail},
		"a restricted key":         {judgeAPIKey("rk_live_hunter2", true), doctor.Pass},
		"a key of test mode":       {judgeAPIKey("rk_test_hunter2", false), doctor.Pass},
		"a test key for live ones": {judgeAPIKey("rk_test_hunter2", true), doctor.Fail},
		"a secret test key, live":  {judgeAPIKey("sk_test_hunter2", true), doctor.Fail},
		"a secret key":             {judgeAPIKey("sk_live_hunter2", true), doctor.Warn},
		"another kind of key":      {judgeAPIKey("hunter2", true), doctor.Fail},
		"a publishable key":        {judgeAPIKey("pk_live_hunter2", true), doctor.Fail},
		"good signatures":          {judgeSignatures(webhookCounts{signed: 5, wronglySigned: 1}), doctor.Pass},
		"wrong signatures alone":   {judgeSignatures(webhookCounts{wronglySigned: 1}), doctor.Fail},
		"snapshot events":          {judgeThin(webhookCounts{signed: 5}), doctor.Pass},
		"thin events":              {judgeThin(webhookCounts{signed: 5, thin: 2}), doctor.Fail},
		"a good configuration":     {doctor.Configuration(nil)[0], doctor.Pass},
		"a bad configuration":      {doctor.Configuration([]string{"X is wrong"})[0], doctor.Fail},
	})
	if none := signingSecrets(""); len(none) != 0 {
		t.Errorf("a missing secret: %+v, want no check: the configuration reports it", none)
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
	if want := (webhookCounts{signed: 7, wronglySigned: 4, thin: 2}); got != want {
		t.Errorf("counts = %+v, want %+v", got, want)
	}
}
