// SPDX-License-Identifier: Apache-2.0

package observe

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
)

// TestLogger: JSON says what text does.
func TestLogger(t *testing.T) {
	for format, want := range map[string]string{
		"text": `level=INFO msg=hello wait=1.5s code=NotFound address=127.0.0.1:80 nobody=<nil> error=lost n=3`,
		"json": `"level":"INFO","msg":"hello","wait":"1.5s","code":"NotFound","address":"127.0.0.1:80","nobody":null,"error":"lost","n":3}`,
	} {
		var out strings.Builder
		log := NewLogger(&out, format, slog.LevelInfo)
		log.Debug("not this")
		log.Info("hello", "wait", 1500*time.Millisecond, "code", codes.NotFound, "address", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 80},
			"nobody", (*net.TCPAddr)(nil), "error", errors.New("lost"), "n", 3)
		if got := out.String(); !strings.HasSuffix(strings.TrimSpace(got), want) {
			t.Errorf("%s: %s\nwant        %s", format, got, want)
		}
	}
}

func TestHealth(t *testing.T) {
	var live error
	parts := map[string]Part{"a": {}, "b": {Fault: errors.New("slow")}}
	routes := Checks{Live: func(context.Context) error { return live }, Ready: func(context.Context) map[string]Part { return parts }}.routes("/live", "/ready")
	ask := func(path string) (int, string) {
		w := httptest.NewRecorder()
		routes[path].ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		return w.Code, strings.TrimSpace(w.Body.String())
	}
	expect := func(path string, wantCode int, want string) {
		t.Helper()
		if code, body := ask(path); code != wantCode || body != want {
			t.Errorf("%s: %d %s, want %d %s", path, code, body, wantCode, want)
		}
	}
	expect("/live", http.StatusOK, `{"daemon":{}}`)
	expect("/ready", http.StatusOK, `{"a":{},"b":{"fault":"slow"}}`)
	live, parts["a"] = errors.New("stuck"), Part{Fault: errors.New("gone"), Hinders: true}
	expect("/live", http.StatusInternalServerError, `{"daemon":{"fault":"stuck"}}`)
	expect("/ready", http.StatusInternalServerError, `{"a":{"fault":"gone"},"b":{"fault":"slow"}}`)
}

func TestValidate(t *testing.T) {
	m, h := &MetricsConfig{Listen: "127.0.0.1:1"}, &HealthConfig{Listen: "127.0.0.1:2"}
	none, all := 0.0, 1.0
	for _, err := range []error{(*TracingConfig)(nil).Validate(), (&TracingConfig{OTLP: "[::1]:4317", Ratio: &all}).Validate(), Validate(nil, nil, ""), Validate(m, h, "json"), Validate(m, nil, "text")} {
		if err != nil {
			t.Error(err)
		}
	}
	for want, err := range map[string]error{
		`block metrics: listen "9988": write host:port`: Validate(&MetricsConfig{Listen: "9988"}, nil, ""),
		`block health: listen "": write host:port`:      Validate(nil, &HealthConfig{}, ""),
		`path "ready": write one like`:                  Validate(nil, &HealthConfig{Listen: ":1", ReadyPath: "ready"}, ""),
		`both /x: give each its own`:                    Validate(nil, &HealthConfig{Listen: ":1", ReadyPath: "/x", LivePath: "/x"}, ""),
		`log_format "xml": write text or json`:          Validate(nil, nil, "xml"),
		`block tracing: otlp "localhost": write host`:   (&TracingConfig{OTLP: "localhost"}).Validate(),
		`ratio 0: write a number above 0`:               (&TracingConfig{OTLP: "localhost:1", Ratio: &none}).Validate(),
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Validate = %v, want %q", err, want)
		}
	}
}
