class Monthly:
    """Sums the amounts of orders by month."""

    def run(self, *, step_id, config, inputs=None, ctx=None):
        df = inputs["df"]
        month = df["day"].str[:7].rename("month")
        return {"df": df.groupby(month)["amount"].sum().reset_index()}
