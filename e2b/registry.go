package e2b

import (
	"fmt"
	"log/slog"
)

// Registry is what E2B needs to pull an image that is not public. Printing,
// logging or encoding it tells nothing of it.
type Registry struct {
	kind   string
	fields map[string]string // as the API names them
}

// BasicRegistry is a registry that takes a user and a password, or a token.
func BasicRegistry(user, password string) *Registry {
	return &Registry{"registry", map[string]string{"username": user, "password": password}}
}

// AWSRegistry is AWS's registry, ECR.
func AWSRegistry(accessKeyID, secretAccessKey, region string) *Registry {
	return &Registry{"aws", map[string]string{"awsAccessKeyId": accessKeyID, "awsSecretAccessKey": secretAccessKey, "awsRegion": region}}
}

// GCPRegistry is Google Cloud's registry. The key is that of a service account,
// in JSON.
func GCPRegistry(serviceAccountJSON string) *Registry {
	return &Registry{"gcp", map[string]string{"serviceAccountJson": serviceAccountJSON}}
}

const hidden = "[secret]"

// Format hides all, whatever the verb.
func (Registry) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(hidden)) }

// LogValue hides all.
func (Registry) LogValue() slog.Value { return slog.StringValue(hidden) }

// body is what the API is sent.
func (r *Registry) body() map[string]string {
	if r == nil {
		return nil
	}
	b := map[string]string{"type": r.kind}
	for k, v := range r.fields {
		b[k] = v
	}
	return b
}
