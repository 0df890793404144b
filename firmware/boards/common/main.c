/* The smallest application around a model: runs it once. What it adds to flash and RAM is nothing but
 * start-up, so that figures of the image are figures of the model.
 *
 * ES_BOARD_RUN is the model's run function, e.g. -DES_BOARD_RUN=es_net_run. */
void ES_BOARD_RUN(void);
int main(void);

int main(void)
{
    ES_BOARD_RUN();
    return 0;
}
